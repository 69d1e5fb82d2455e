"""The run folder of several tasks.

run.json   format, version, labels by task, recipe      recipe.yaml   the recipe, written out
model/     backbone, routers and heads                  checkpoints/  of a training under way
versions/  what updates made of it, current.json says which is in use (see double/versions.py)
training.json  what training cost, and each task's validation score
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from turnout._version import __version__
from turnout.double import versions
from turnout.double.config import TasksMeasureConfig
from turnout.double.recipe import TasksRecipe
from turnout.errors import UserError
from turnout.files import make_folder, read_json, write_json, write_text
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks import TASKS
from turnout.tasks.base import Task
from turnout.tasks.casing import cased
from turnout.train import saving

FORMAT, KIND = 1, "tasks"


@dataclass(frozen=True)
class TasksRun:
    """An open run folder. labels: of each task, as its head counts them."""

    path: Path
    labels: dict[str, list[str]]
    recipe: TasksRecipe

    @property
    def model(self) -> Path:
        """Folder of the model in use."""
        return versions.folder(self.path, versions.current(self.path))

    @property
    def checkpoints(self) -> Path:
        """Folder of the training under way; gone when it is done."""
        return self.path / "checkpoints"

    def tasks(self) -> dict[str, Task[Any]]:
        """The recipe's tasks with the labels of this run."""
        return {
            name: TASKS[config.kind](config, self.labels[name])
            for name, config in self.recipe.tasks.items()
        }

    def measure_config(self, overrides: Sequence[str]) -> TasksMeasureConfig:
        """What to measure: as the recipe says, but for ``field=value`` texts of its measure part.

        Raises UserError for an unknown field or a wrong value.
        """
        if not overrides:
            return self.recipe.measure
        named = [f"measure.{text.removeprefix('measure.')}" for text in overrides]
        return TasksRecipe.load(self.path / "recipe.yaml", named, resolve=False).measure

    def tokenizer(self) -> Any:
        """The tokenizer, as saved beside the model."""
        tokenizer = saving.load_tokenizer(self._trained())
        return cased(tokenizer) if self.recipe.casing else tokenizer

    def load(self) -> TasksModel:
        """The trained model, in eval mode."""
        folder = self._trained()
        routed = bool(self.recipe.routers)
        return saving.load(folder) if routed else saving.load_host(folder).eval()  # type: ignore[return-value]

    def _trained(self) -> Path:
        if not self.model.is_dir():
            raise UserError(
                f"{self.path} has no model/ yet: its training did not finish. Go on with: "
                f"turnout train {self.path}/recipe.yaml --out {self.path}"
            )
        return self.model


def is_tasks_run(path: str | Path) -> bool:
    """Is this the run folder of several tasks."""
    file = Path(path) / "run.json"
    found = read_json(file) if file.is_file() else None
    return isinstance(found, dict) and found.get("kind") == KIND


def open_tasks_run(path: str | Path) -> TasksRun:
    """Open a run folder. Raises UserError: not one, or of a format this version can't read."""
    path = Path(path)
    if not is_tasks_run(path):
        raise UserError(f"{path} is not a run folder of several tasks")
    found = read_json(path / "run.json")
    if found.get("format") != FORMAT:
        raise UserError(
            f"{path}/run.json: format {found.get('format')!r}; turnout {__version__} reads format "
            f"{FORMAT}. Use the version that wrote it, or train again into another folder"
        )
    try:
        recipe = TasksRecipe.model_validate(found["recipe"])
        labels = {str(k): [str(each) for each in v] for k, v in found["labels"].items()}
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise UserError(
            f"{path}/run.json does not fit this version ({reason}); written by turnout "
            f"{found.get('turnout')!r}, this is {__version__}"
        ) from None
    return TasksRun(path, labels, recipe)


def start_tasks_run(
    path: str | Path, recipe: TasksRecipe, labels: Mapping[str, list[str]]
) -> TasksRun:
    """Begin a run folder, or go on in one that was begun with the same recipe and labels.

    Raises UserError when the folder holds another run, or something else.
    """
    path = Path(path)
    if is_tasks_run(path):
        before = open_tasks_run(path)
        begun = before.model.is_dir() or before.checkpoints.is_dir()
        if begun and before.recipe.model_dump(exclude={"measure"}) != recipe.model_dump(
            exclude={"measure"}
        ):
            raise UserError(
                f"{path} holds a run of another recipe. Choose another --out, or remove that folder"
            )
        if begun:
            check_labels(before.labels, labels)
    elif path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty and not a run folder; choose another --out")
    make_folder(path)
    fields = {"format": FORMAT, "kind": KIND, "turnout": __version__, "labels": dict(labels)}
    write_json(path / "run.json", {**fields, "recipe": recipe.model_dump(mode="json")})
    write_text(path / "recipe.yaml", recipe.text(f"turnout: {__version__}"))
    return TasksRun(path, dict(labels), recipe)


def check_labels(before: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> None:
    """Raise UserError where the labels of a task are no longer those that its head was made for."""
    for name, labels in now.items():
        if name in before and before[name] != labels:
            gone = [label for label in before[name] if label not in labels]
            new = [label for label in labels if label not in before[name]]
            raise UserError(
                f"task {name!r}: its head was made for other labels (new: "
                f"{', '.join(new) or '-'}; gone: {', '.join(gone) or '-'}): train it anew, in "
                "another folder"
            )
