"""Imports inside the package go downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "turnout"
# From the bottom to the top. Modules of one layer may import each other.
LAYERS = (
    ("_version", "allocator", "console", "errors", "files", "registry"),
    ("route",),
    ("select", "cost", "flow"),
    ("routers", "objectives", "noise"),
    ("hosts", "execute", "units"),
    ("install", "building", "checks", "wiring", "noising"),
    ("tasks", "demo"),  # the demo's data are data like any other; what runs it is a leaf
    ("train",),
    ("measure",),
    ("recipe", "recipe_yaml"),
    ("run",),
    ("train.pipeline", "predict", "inspect", "catalogue"),
    ("double", "integrations"),
    ("workers",),
    ("contest",),
    ("generation",),
    ("cli", "demo.__main__", "__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def place(module: str) -> str:
    """The name in LAYERS that `module` (dotted, below the package) belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), "")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that `path` imports from the package."""
    folder = ["turnout", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "turnout":
                inner = name.removeprefix("turnout").removeprefix(".")
                yield node.lineno, inner if place(inner) else "__init__"


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("*.py")),
    ids=lambda p: "/".join(p.parts[p.parts.index("turnout") + 1 :]),
)
def test_imports_go_downwards(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = place(".".join(parts))
    assert own, f"{path.name} has no layer: add '{parts[0]}' to LAYERS in tests/test_layers.py"
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: '{own}' (layer {LEVEL[own]}) imports "
        f"'{name}' (layer {LEVEL[place(name)]}), which lies above it"
        for line, name in imports(path)
        if LEVEL[place(name)] > LEVEL[own]
    ]
    assert not wrong, "\n".join(wrong)
