"""YAML with places: where each field of a page stands, and validation errors told by place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from turnout.errors import UserError
from turnout.files import read_bytes

Loc = tuple[str | int, ...]
NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # what a field's name may be
MOST = 10  # mistakes told at once


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass
class Page:
    """A YAML page: its data, and where each field stands. overridden: fields set from outside."""

    path: Path
    data: dict[str, Any]
    root: yaml.Node
    overridden: dict[Loc, str] = field(default_factory=dict)

    def place(self, loc: Loc) -> str:
        """ "file:line" of a field, of the nearest field above it, or the override that set it."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self.overridden:
                return f"command line ({self.overridden[loc[:length]]})"
        return f"{self.path}:{_line(self.root, loc)}"


def read_page(path: Path, overrides: Sequence[str] = ()) -> Page:
    """Read a page of fields and apply ``field.field=value`` texts. Raises UserError."""
    try:
        text = read_bytes(path).decode("utf-8")
        root = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{_mark(path, error)}: not valid YAML: {_problem(error)}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if root is None:
        raise UserError(f"{path} is empty; a recipe needs model, task and routers")
    if not isinstance(data, dict):
        raise UserError(
            f"{path}:1: found a {type(data).__name__}; a recipe is a page of fields (model: ...)"
        )
    _check_names(path, root, ())
    page = Page(path, data, root)
    for override in overrides:
        _override(page, override)
    return page


def explain(error: ValidationError, page: Page, schema: dict[str, Any]) -> str:
    """Every mistake on a line: place, field, what was found, what is allowed."""
    told: dict[Loc, list[Any]] = {}
    for each in error.errors(include_url=False):
        loc, node = _walk(each["loc"], schema)
        told.setdefault(loc, []).append((each, node))
    lines = []
    for loc, group in told.items():
        error_type, node = group[0][0]["type"], group[0][1]
        if error_type == "union_tag_invalid":
            loc = (*loc, "kind")
        name = ".".join(str(part) for part in loc) or "the recipe"
        reason = _reason(error_type, [each for each, _ in group], str(loc[-1:] and loc[-1]), node)
        lines.append(f"{page.place(loc)}: {name}: {reason}")
    more = [f"... and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return "\n".join(lines[:MOST] + more)


def _reason(error_type: str, errors: list[Any], name: str, node: dict[str, Any]) -> str:
    """What is wrong with one field, and what is allowed."""
    kinds = list(node.get("discriminator", {}).get("mapping", {}))
    if error_type == "extra_forbidden":
        allowed = list(node.get("properties", {}))
        return f"unknown field; {_choice(name, allowed)}"
    if error_type == "missing":
        return "this field is missing"
    if error_type == "union_tag_not_found":
        return f"the field 'kind' is missing; allowed: {', '.join(kinds)}"
    if error_type == "union_tag_invalid":
        found = errors[0]["ctx"]["tag"]
        return f"found {found!r}; {_choice(found, kinds)}"
    found = errors[0]["input"]
    if error_type == "value_error":
        return errors[0]["msg"].removeprefix("Value error, ")
    wanted = dict.fromkeys(each["msg"].partition(" should ")[2] or each["msg"] for each in errors)
    reason = f"found {_short(found)}; it should {' or '.join(wanted)}"
    if isinstance(found, bool):
        return f"{reason} (YAML reads a bare yes, no, on, off as true or false: quote a word)"
    literals = re.findall(r"'([^']*)'", errors[0]["msg"]) if error_type == "literal_error" else []
    return reason + "".join(f"; {hint}" for hint in _nearest(found, literals))


def _walk(loc: Loc, schema: dict[str, Any]) -> tuple[Loc, dict[str, Any]]:
    """The fields of a pydantic location without the names of union members that it also holds,
    and the schema of the last object on the way."""
    node = _follow(schema, schema)
    own: list[str | int] = []
    for place, part in enumerate(loc):
        last = place == len(loc) - 1
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = _follow({"$ref": node["discriminator"]["mapping"][part]}, schema)
        elif isinstance(part, int):
            own.append(part)
            node = _follow(node.get("items", {}), schema)
        elif named := _named(node):
            own.append(part)
            node = _follow(named, schema)
        elif part in node.get("properties", {}):
            own.append(part)
            inner = _follow(node["properties"][part], schema)
            node = node if last and not inner else inner
        elif "properties" in node:
            own.append(part)
            break
        # else: the name of a union member, such as "str" or "list[str]"
    return tuple(own), node


def _follow(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    for choice in node.get("anyOf", ()):
        inner = _follow(choice, schema)
        if "properties" in inner or "items" in inner or _named(inner):
            return inner
    return node


def _named(node: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the values of a table whose names the user makes; None where it is none."""
    found = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
    return found if isinstance(found, dict) and "properties" not in node else None


def _choice(name: Any, allowed: Sequence[str]) -> str:
    return " ".join([*_nearest(name, allowed), f"allowed: {', '.join(allowed)}"])


def _nearest(name: Any, allowed: Sequence[str]) -> list[str]:
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    return [f"did you mean {close[0]!r}?" for _ in close]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(node: yaml.Node, loc: Loc) -> int:
    """Line (from 1) of a field's name; of the deepest field on the way that is there."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _check_names(path: Path, node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """Refuse a field given twice (YAML readers take the last one without a word), a name that is no
    word, and a page that holds itself."""
    if any(node is other for other in above):
        raise UserError(f"{path}:{node.start_mark.line + 1}: an alias stands inside its own anchor")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in NAMES:
                raise UserError(
                    f"{path}:{line}: {_short(key.value)}: a field's name is a word; YAML reads "
                    f"this as a {key.tag.rpartition(':')[2]}"
                )
            if key.value in lines:
                raise UserError(
                    f"{path}:{line}: {key.value}: this field stands twice "
                    f"(first in line {lines[key.value]})"
                )
            lines[key.value] = line
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _check_names(path, child, (*above, node))


def _override(page: Page, text: str) -> None:
    """Set one field of a page. Raises UserError for a text that isn't ``field.field=value``."""
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{text!r} is not an override; write field.field=value (train.epochs=2)")
    try:
        value = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"command line ({text}): not a YAML value: {raw!r}") from error
    loc = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    at: Any = page.data
    for place, part in enumerate(loc):
        last = place == len(loc) - 1
        if isinstance(at, dict) and isinstance(part, str):
            at[part] = value if last else _container(at.get(part))
            at = at[part]
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at[part] = value if last else _container(at[part])
            at = at[part]
        else:
            raise UserError(
                f"command line ({text}): there is no field {'.'.join(map(str, loc[: place + 1]))}"
            )
    page.overridden[loc] = text


def _container(value: Any) -> Any:
    return value if isinstance(value, dict | list) else {}


def _mark(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)


def _problem(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.problem, error.context) if part)
