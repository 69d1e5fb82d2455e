"""Versions of a run's model: every one is kept, one is in use.

model/ is version 0. versions/N/ holds model/ and update.json, whole or not at all; current.json
names the one in use and is written last, so that a stop at any point leaves the old one in use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.errors import UserError
from turnout.files import read_json, write_json

CURRENT, VERSIONS, UPDATE = "current.json", "versions", "update.json"


def current(run: Path) -> int:
    """The version in use. Raises UserError where current.json is no such file."""
    path = run / CURRENT
    if not path.is_file():
        return 0
    found = read_json(path)
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, int) or version < 0:
        raise UserError(f"{path} names no version: found {found!r}")
    return version


def folder(run: Path, version: int) -> Path:
    """Where a version's model lies."""
    return run / "model" if version == 0 else run / VERSIONS / str(version) / "model"


def every(run: Path) -> list[int]:
    """All versions there are, the refused ones included."""
    found = [path.name for path in (run / VERSIONS).glob("*") if (path / UPDATE).is_file()]
    return [0, *sorted(int(name) for name in found if name.isdecimal())]


def facts(run: Path, version: int) -> dict[str, Any]:
    """What is known of a version: its update.json."""
    return {} if version == 0 else read_json(run / VERSIONS / str(version) / UPDATE)


def use(run: Path, version: int) -> None:
    """Put a version in use. Raises UserError where it is not there."""
    known = every(run)
    if version not in known or not folder(run, version).is_dir():
        raise UserError(
            f"{run} has no version {version}; it has {', '.join(str(each) for each in known)}"
        )
    write_json(run / CURRENT, {"version": version})


def refusal(fallen: list[str], margin: float) -> str:
    """Why a version was not put in use."""
    if fallen:
        return f"{', '.join(fallen)} fell by more than {margin:g} on old test rows"
    return "it is worse on the new test rows"
