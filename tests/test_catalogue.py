"""The list of routers says in words what their JSON schemas say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from turnout.catalogue import _allowed, _default


class Fields(BaseModel):
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    kind: Literal["a", "b"] | None = None
    deep: tuple[int, ...] = ()
    on: bool = False
    fixed: Literal["x"] = "x"
    count: int = 1


def test_fields_in_words() -> None:
    fields = Fields.model_json_schema()["properties"]
    assert {name: _allowed(field) for name, field in fields.items()} == {
        "share": "number >= 0, < 1",
        "kind": "a, b or none",
        "deep": "list",
        "on": "true, false",
        "fixed": "x",
        "count": "integer",
    }
    assert [_default(value) for value in (None, False, True, 1, 0, 0.5, "x")] == [
        "none", "false", "true", "1", "0", "0.5", "x",
    ]  # fmt: skip
