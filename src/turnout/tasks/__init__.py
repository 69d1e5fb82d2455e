"""Tasks: data -> features -> metric. A new task is one file and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.tasks.base import Task as Task
from turnout.tasks.classification import ClassificationConfig as ClassificationConfig
from turnout.tasks.classification import ClassificationTask as ClassificationTask
from turnout.tasks.ner import NERConfig as NERConfig
from turnout.tasks.ner import NERTask as NERTask

TASKS = {"classification": ClassificationTask, "ner": NERTask}
TaskConfig = Annotated[ClassificationConfig | NERConfig, Field(discriminator="kind")]
