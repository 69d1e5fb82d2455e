"""`turnout routers`: what there is to choose from, read off the registry."""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Group
from rich.table import Table

from turnout.routers import ROUTERS, RouterConfig

PAPER = re.compile(r"arXiv[: ]\d{4}\.\d{4,5}")


def routers() -> Group:
    """A table a router: its fields, what they may be, their defaults; its papers below."""
    return Group(*(_table(kind) for kind in ROUTERS))


def _table(kind: str) -> Table:
    cls = ROUTERS[kind]
    page = (sys.modules[cls.__module__].__doc__ or "").strip()
    papers = ", ".join(dict.fromkeys(PAPER.findall(page)))
    title = f"{kind}: {page.splitlines()[0]}"
    table = Table(title=title, title_justify="left", caption=papers, caption_justify="left")
    for column in ("field", "default", "allowed"):
        table.add_column(column)
    schema = cls.Config.model_json_schema()
    # its own fields first, then those that every router has
    names = sorted(cls.Config.model_fields, key=lambda name: name in RouterConfig.model_fields)
    for name in names:
        if name != "kind":
            field = schema["properties"][name]
            table.add_row(name, _default(field.get("default")), _allowed(field))
    return table


def _default(value: Any) -> str:
    return "none" if value is None else str(value).lower() if value in (True, False) else str(value)


def _allowed(field: dict[str, Any]) -> str:
    """What a field of a JSON schema may hold, in words."""
    if "anyOf" in field:
        return " or ".join(_allowed(choice) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(field["enum"])
    if "const" in field:
        return str(field["const"])
    kind = {"null": "none", "array": "list", "boolean": "true, false"}.get(
        field.get("type", ""), field.get("type", "")
    )
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]:g}" for name, sign in bounds.items() if name in field]
    return f"{kind} {', '.join(limits)}".strip()
