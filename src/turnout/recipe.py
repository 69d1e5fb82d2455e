"""The YAML page that a user writes, and errors that name its file, line and field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from turnout.errors import UserError
from turnout.files import nearest
from turnout.measure.config import MeasureConfig
from turnout.objectives import ObjectivesConfig
from turnout.recipe_yaml import Page, explain, read_page
from turnout.routers import AnyRouterConfig
from turnout.tasks import TaskConfig
from turnout.tasks.table import is_hub_name
from turnout.train.config import TrainConfig

FILES = (("task", "train"), ("task", "validation"), ("task", "test"))


class Recipe(BaseModel):
    """One experiment: the model, the task, the routers, how to train and what to measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    task: TaskConfig
    routers: Annotated[list[AnyRouterConfig], Field(min_length=1)]
    objectives: ObjectivesConfig = ObjectivesConfig()
    train: TrainConfig = TrainConfig()
    measure: MeasureConfig = MeasureConfig()

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
    path = Path(path)
    page = read_page(path, overrides)
    try:
        # through JSON: strict about types there, yet a list may fill a tuple
        Recipe.model_validate_json(json.dumps(page.data, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, page, schema())) from None
    if resolve:
        _resolve(page, path.resolve().parent)
    return Recipe.model_validate_json(json.dumps(page.data), strict=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }


def _resolve(page: Page, folder: Path) -> None:
    """Make the paths of a page absolute; what can only be a name on the Hub stays a name."""
    for parent, name in FILES:
        section = page.data[parent]
        if section.get(name) is not None:
            section[name] = _resolved(page, (parent, name), section[name], folder)
    page.data["model"] = _resolved(page, ("model",), page.data["model"], folder)


def _resolved(page: Page, field: tuple[str, ...], value: str, folder: Path) -> str:
    base = Path.cwd() if field in page.overridden else folder
    wanted = base / Path(value).expanduser()
    if wanted.exists():
        return str(wanted)
    if is_hub_name(value) and not ("/" in value and wanted.parent.is_dir()):
        return value
    raise UserError(
        f"{page.place(field)}: {'.'.join(field)}: {value!r}: no such file or folder "
        f"({wanted}){nearest(wanted)}"
    )
