"""A run folder: what `turnout train` leaves behind, and every other command reads.

run.json      format, version, labels, recipe      recipe.yaml  the recipe, written out
training.json what each stage cost
dense/        the host, trained for the task, with   routed/      the routed model
              its answers for the training rows
static/NAME/  cut models to compare with           checkpoints/ of a training under way
logs/NAME/    for TensorBoard, when asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel

from turnout._version import __version__
from turnout.errors import UserError
from turnout.files import make_folder, read_json, write_json, write_text
from turnout.measure.config import MeasureConfig
from turnout.recipe import Recipe, load
from turnout.tasks import TASKS
from turnout.tasks.base import Task
from turnout.train import saving

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """An open run folder. labels: names of the classes, as the model counts them."""

    path: Path
    labels: list[str]
    recipe: Recipe

    @property
    def dense(self) -> Path:
        """Folder of the dense host."""
        return self.path / "dense"

    @property
    def routed(self) -> Path:
        """Folder of the routed model."""
        return self.path / "routed"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training under way; gone when it is done."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """TensorBoard's logs, a folder for each model that was trained."""
        return self.path / "logs"

    def static(self, name: str) -> Path:
        """Folder of a cut model."""
        return self.path / "static" / name

    def task(self) -> Task[Any]:
        """The recipe's task with the labels of this run."""
        return TASKS[self.recipe.task.kind](self.recipe.task, self.labels)

    def measure_config(self, overrides: Sequence[str]) -> MeasureConfig:
        """What to measure: as the recipe says, but for ``field=value`` texts of its measure part.

        Raises UserError for an unknown field or a wrong value.
        """
        if not overrides:
            return self.recipe.measure
        named = [f"measure.{text.removeprefix('measure.')}" for text in overrides]
        return load(self.path / "recipe.yaml", named, resolve=False).measure

    def tokenizer(self) -> Any:
        """The tokenizer, as saved beside the dense host."""
        return saving.load_tokenizer(self._there(self.dense))

    def load_dense(self) -> PreTrainedModel:
        """The dense host, in eval mode."""
        return saving.load_host(self._there(self.dense)).eval()

    def load_routed(self) -> PreTrainedModel:
        """The routed model, in eval mode."""
        return saving.load(self._there(self.routed))

    def _there(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise UserError(
                f"{self.path} has no {folder.name}/ yet: its training did not finish. Go on with: "
                f"turnout train {self.path}/recipe.yaml --out {self.path}"
            )
        return folder


def is_run(path: str | Path) -> bool:
    """Is this a run folder."""
    return (Path(path) / "run.json").is_file()


def open_run(path: str | Path) -> Run:
    """Open a run folder. Raises UserError: not one, or of a format this version can't read."""
    path = Path(path)
    if not is_run(path):
        what = "there is no such folder" if not path.exists() else "it holds no run.json"
        raise UserError(
            f"{path} is not a run folder: {what}. Make one with: turnout train RECIPE --out {path}"
        )
    found = read_json(path / "run.json")
    fields = found if isinstance(found, dict) else {}
    if fields.get("format") != FORMAT:
        raise UserError(
            f"{path}/run.json: format {fields.get('format')!r}, written by turnout "
            f"{fields.get('turnout', 'of an unknown version')}; turnout {__version__} reads format "
            f"{FORMAT}. Use the version that wrote it, or train again into another folder"
        )
    try:
        recipe = Recipe.model_validate(fields["recipe"])
        labels = [str(label) for label in fields["labels"]]
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()
        raise UserError(
            f"{path}/run.json does not fit this version ({' '.join(reason[:3])}); written by "
            f"turnout {fields.get('turnout')!r}, this is {__version__}"
        ) from None
    return Run(path, labels, recipe)


def start_run(path: str | Path, recipe: Recipe, labels: list[str]) -> Run:
    """Begin a run folder, or go on in one that was begun with the same recipe.

    What is measured may have changed since; the rest may not. Raises UserError when the folder
    holds another run, or something else.
    """
    path = Path(path)
    if is_run(path):
        check_same(open_run(path), recipe)
    elif path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty and not a run folder; choose another --out")
    make_folder(path)
    fields = {"format": FORMAT, "turnout": __version__, "labels": labels}
    # run.json first: it is what makes this a run folder, which the same command may go on in
    write_json(path / "run.json", {**fields, "recipe": recipe.model_dump(mode="json")})
    write_text(path / "recipe.yaml", recipe.text(f"turnout: {__version__}"))
    return Run(path, labels, recipe)


def check_same(run: Run, recipe: Recipe) -> None:
    """Raise UserError when a run was begun with another recipe (what is measured aside)."""
    if not (run.dense.is_dir() or run.checkpoints.is_dir()):
        return  # nothing came of it
    ours, theirs = recipe.model_dump(mode="json"), run.recipe.model_dump(mode="json")
    for section in ("model", "task", "routers", "noise", "objectives", "train"):
        if ours[section] != theirs[section]:
            raise UserError(
                f"{run.path} holds a run of another recipe: "
                f"{_difference(section, theirs[section], ours[section])}. "
                "Choose another --out, or remove that folder"
            )


def _difference(name: str, there: Any, here: Any) -> str:
    """The first field that differs, and how."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            if there.get(key) != here.get(key):
                return _difference(f"{name}.{key}", there.get(key), here.get(key))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for place, pair in enumerate(zip(there, here, strict=True)):
            if pair[0] != pair[1]:
                return _difference(f"{name}.{place}", *pair)
    return f"{name} is {there!r} there and {here!r} here"
