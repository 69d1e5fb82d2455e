"""Tasks: data -> features -> metric. A new task is one file and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.tasks.answers import AnswersConfig as AnswersConfig
from turnout.tasks.answers import AnswersTask as AnswersTask
from turnout.tasks.base import Task as Task
from turnout.tasks.classification import ClassificationConfig as ClassificationConfig
from turnout.tasks.classification import ClassificationTask as ClassificationTask
from turnout.tasks.labels import LabelsConfig as LabelsConfig
from turnout.tasks.labels import LabelsTask as LabelsTask
from turnout.tasks.language import LanguageConfig as LanguageConfig
from turnout.tasks.language import LanguageTask as LanguageTask
from turnout.tasks.ner import NERConfig as NERConfig
from turnout.tasks.ner import NERTask as NERTask
from turnout.tasks.number import NumberConfig as NumberConfig
from turnout.tasks.number import NumberTask as NumberTask
from turnout.tasks.ranking import RankingConfig as RankingConfig
from turnout.tasks.ranking import RankingTask as RankingTask
from turnout.tasks.rewriting import RewritingConfig as RewritingConfig
from turnout.tasks.rewriting import RewritingTask as RewritingTask
from turnout.tasks.words import WordsConfig as WordsConfig
from turnout.tasks.words import WordsTask as WordsTask

TASKS = {
    "answers": AnswersTask,
    "classification": ClassificationTask,
    "labels": LabelsTask,
    "language": LanguageTask,
    "ner": NERTask,
    "number": NumberTask,
    "ranking": RankingTask,
    "rewriting": RewritingTask,
    "words": WordsTask,
}
TaskConfig = Annotated[
    AnswersConfig
    | ClassificationConfig
    | LabelsConfig
    | LanguageConfig
    | NERConfig
    | NumberConfig
    | RankingConfig
    | RewritingConfig
    | WordsConfig,
    Field(discriminator="kind"),
]
