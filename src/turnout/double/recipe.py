"""The YAML page of several tasks on one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnout.double.config import TasksMeasureConfig, TasksTrainConfig
from turnout.recipe import checked
from turnout.recipe_yaml import read_page
from turnout.routers import AnyRouterConfig
from turnout.tasks import TaskConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class BridgeConfig(BaseModel):
    """A language model as the routing layer. model: folder, packaged name or name on the Hub.
    layers: of its first blocks; None = all. frozen: only the projections around them learn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    layers: Annotated[int, Field(gt=0)] | None = None
    frozen: bool = True


class TasksRecipe(BaseModel):
    """One backbone: tasks by name, the routers between it and their heads (or inside of it), how to
    train and what to measure. bridge: a language model between backbone and routers. casing: tell
    the backbone how words are written, where its tokenizer lowers all letters. layers: heads, and
    routers before them, read the ``last`` layer, or all of them, ``mixed`` for each task by weights
    that are learned (see units/depth_mix.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    tasks: Annotated[dict[Name, TaskConfig], Field(min_length=1)]
    routers: list[AnyRouterConfig] = []
    bridge: BridgeConfig | None = None
    casing: bool = False
    layers: Literal["last", "mixed"] = "last"
    train: TasksTrainConfig = TasksTrainConfig()
    measure: TasksMeasureConfig = TasksMeasureConfig()

    @model_validator(mode="after")
    def _fits(self) -> TasksRecipe:
        for name in self.train.weights:
            if name not in self.tasks:
                raise ValueError(
                    f"train.weights: no task {name!r}; the tasks are {', '.join(self.tasks)}"
                )
        if self.layers == "mixed" and self.bridge is not None:
            raise ValueError(
                "layers: mixed and bridge: a language model reads the last layer; leave one out"
            )
        if self.train.strategy == "prefix" and any(r.site != "output" for r in self.routers):
            raise ValueError(
                "train.strategy: prefix gives every attention keys and values, which routers "
                "inside of the backbone do not know of: put routers at site output, or use prompt"
            )
        if self.train.strategy == "lora" and any(r.site == "expert" for r in self.routers):
            raise ValueError(
                "train.strategy: lora changes networks whose neurons routers at site expert share "
                "out: use another strategy, or another site"
            )
        return self

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), resolve: bool = True
    ) -> TasksRecipe:
        """Read a page, as ``turnout.recipe.load`` does. Raises UserError likewise."""
        page = read_page(Path(path), overrides)
        tasks = page.data.get("tasks")
        names = list(tasks) if isinstance(tasks, dict) else []
        models = [("model",), ("bridge", "model")]
        return checked(page, cls, [("tasks", name) for name in names], resolve, models)

    def text(self, comment: str = "") -> str:
        """This recipe as YAML, every field written out."""
        page = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return f"# {comment}\n{page}" if comment else page


def names_tasks(path: str | Path) -> bool:
    """Is this the page of several tasks. Raises UserError where it cannot be read."""
    return "tasks" in read_page(Path(path)).data
