"""Files that are whole or absent: writes go to a temporary name in the same folder, then rename."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turnout.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, as ``write_bytes`` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file. A reader sees the old one or the new one, never a part.

    Raises UserError (path and reason) when the system refuses: disk full, no permission, no folder.
    """
    path = Path(path)
    temp = _temp_beside(path)
    try:
        with open(temp, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temp, path)
    except OSError as error:
        raise UserError(_refusal(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON. NaN and infinity raise ValueError (they are not JSON)."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The parsed file. Raises UserError: no such file, not UTF-8, bad JSON (line and column)."""
    raw = read_bytes(path)
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(f"{where}: not valid JSON: {error.msg}") from error


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it becomes `path`, replacing an older folder.

    When the body raises, the new folder is removed and the old one stays as it was. A full disk or
    a missing permission becomes a UserError that names `path`.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; a folder is to be written there: choose another name")
    temp = _temp_beside(path)
    try:
        temp.mkdir()
        yield temp
        _sync(temp)
        _swap_in(temp, path)
    except OSError as error:
        raise UserError(_refusal(path, error)) from error
    except Exception as error:
        # safetensors reports a full disk by its own exception type, not by OSError
        if "No space left on device" in str(error):
            raise UserError(f"cannot write {path}: No space left on device") from error
        raise
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def copy_folder(source: str | Path, path: str | Path) -> None:
    """Copy a folder; `path` is whole or absent, as with ``atomic_dir``. Its parents are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_dir(path) as temp:
        shutil.copytree(source, temp, dirs_exist_ok=True)


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it, unless they are there; UserError where it can't be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def read_bytes(path: str | Path) -> bytes:
    """All of a file. Raises UserError: no such file (with the nearest names), or not readable."""
    path = require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def require_file(path: str | Path) -> Path:
    """`path` as a Path to an existing file; else UserError that offers the nearest names there."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a file is needed")
    if not path.is_file():
        raise UserError(f"{path}: no such file{nearest(path)}")
    return path


def nearest(path: str | Path) -> str:
    """A hint to follow "no such file": names like it there, or that the folder is absent."""
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        return f" (the folder {folder} does not exist)"
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f" (cannot list {folder}: {error.strerror})"
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return (
        f"; did you mean {' or '.join(repr(str(folder / name)) for name in close)}?"
        if close
        else ""
    )


def _temp_beside(path: Path) -> Path:
    # not tempfile: its private mode (0600) would stay on the renamed file
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"


def _refusal(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}{_culprit(path, error)}"


def _culprit(path: Path, error: OSError) -> str:
    """What the system named, where that is not the write to `path` itself."""
    named = error.filename
    if not isinstance(named, str) or Path(named).name.startswith(f".{path.name}."):
        return f" (folder {path.parent})" if not path.parent.is_dir() else ""
    return f" ({named})"


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def _swap_in(temp: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temp, path)
        return
    old = _temp_beside(path)
    os.rename(path, old)
    try:
        os.rename(temp, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
