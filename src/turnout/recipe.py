"""The YAML page that a user writes, and errors that name its file, line and field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from turnout.errors import UserError
from turnout.files import nearest
from turnout.measure.config import MeasureConfig
from turnout.noise import AnyNoiseConfig
from turnout.objectives import ObjectivesConfig
from turnout.recipe_yaml import Loc, Page, explain, read_page
from turnout.routers import AnyRouterConfig
from turnout.tasks import TaskConfig
from turnout.tasks.table import is_hub_name
from turnout.train.config import TrainConfig

FILES = ("train", "validation", "test")


class Recipe(BaseModel):
    """One experiment: the model, the task, the routers, trained noise, how to train and what to
    measure. Routers or noise may be left out, not both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    task: TaskConfig
    routers: list[AnyRouterConfig] = []
    noise: list[AnyNoiseConfig] = []
    objectives: ObjectivesConfig = ObjectivesConfig()
    train: TrainConfig = TrainConfig()
    measure: MeasureConfig = MeasureConfig()

    @field_validator("task")
    @classmethod
    def _alone(cls, task: Any) -> Any:
        if task.kind == "words":
            raise ValueError("kind: words is for recipes of `tasks:`, alone there or beside others")
        return task

    @model_validator(mode="after")
    def _something(self) -> Recipe:
        if not self.routers and not self.noise:
            raise ValueError("name at least one router in `routers`, or noise in `noise`")
        if self.measure.noise_scales and not self.noise:
            raise ValueError("measure.noise_scales: this recipe has no `noise`")
        return self

    def text(self, comment: str = "") -> str:
        """This recipe as YAML, every field written out."""
        page = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return f"# {comment}\n{page}" if comment else page


def load(path: str | Path, overrides: Sequence[str] = (), resolve: bool = True) -> Recipe:
    """Read a recipe; ``overrides`` are ``field.field=value`` texts that win over the file.

    Paths in the file are relative to it, paths in overrides to the working directory; both come
    out absolute. resolve: look for the files; False leaves their names as they are written. Raises
    UserError (file, line, field, what was found, what is allowed) for bad YAML, an unknown field, a
    wrong value, or a file that isn't there.
    """
    page = read_page(Path(path), overrides)
    if "tasks" in page.data:
        raise UserError(
            f"{page.place(('tasks',))}: tasks: this command takes a recipe of one task; "
            "`turnout train` and `turnout measure` take those of several"
        )
    return checked(page, Recipe, [("task",)], resolve)


P = TypeVar("P", bound=BaseModel)


def checked(
    page: Page,
    kind: type[P],
    tasks: Sequence[Loc],
    resolve: bool = True,
    models: Sequence[Loc] = (("model",),),
) -> P:
    """A page as a recipe of some kind. tasks: where those stand that name files. models: fields
    that name models. Raises UserError as ``load``."""
    try:
        # through JSON: strict about types there, yet a list may fill a tuple
        kind.model_validate_json(json.dumps(page.data, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, page, schema(kind))) from None
    if resolve:
        _resolve(page, tasks, models, page.path.resolve().parent)
    return kind.model_validate_json(json.dumps(page.data), strict=True)


def plain_page(path: str | Path, kind: type[P], files: Sequence[Loc]) -> P:
    """A page that is no recipe, checked likewise. files: fields that list names of files, which are
    relative to the page. Raises UserError as ``load``."""
    page = read_page(Path(path))
    made = checked(page, kind, [], resolve=False)
    for *above, last in files:
        section: Any = page.data
        for part in above:
            section = section[part]
        folder = page.path.resolve().parent
        section[last] = [str(folder / Path(name).expanduser()) for name in section[last]]
    return type(made).model_validate_json(json.dumps(page.data), strict=True)


def schema(kind: type[BaseModel] = Recipe) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **kind.model_json_schema(),
    }


def _resolve(page: Page, tasks: Sequence[Loc], models: Sequence[Loc], folder: Path) -> None:
    """Make the paths of a page absolute; what can only be a name on the Hub stays a name."""
    for field in [*((*task, name) for task in tasks for name in FILES), *models]:
        section: Any = page.data
        for part in field[:-1]:
            section = section.get(part) or {}
        if section.get(field[-1]) is not None:
            named = section[field[-1]]
            section[field[-1]] = (
                [_resolved(page, field, name, folder) for name in named]
                if isinstance(named, list)
                else _resolved(page, field, named, folder)
            )


def _resolved(page: Page, field: Loc, value: str, folder: Path) -> str:
    base = Path.cwd() if field in page.overridden else folder
    wanted = base / Path(value).expanduser()
    if wanted.exists():
        return str(wanted)
    if is_hub_name(value) and not ("/" in value and wanted.parent.is_dir()):
        return value
    raise UserError(
        f"{page.place(field)}: {'.'.join(map(str, field))}: {value!r}: no such file or folder "
        f"({wanted}){nearest(wanted)}"
    )
