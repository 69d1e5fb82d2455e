"""Lines of a UTF-8 file or of standard input, with errors that name file and line."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from turnout.errors import UserError
from turnout.files import read_bytes

STDIN = "-"


def source_name(path: str | Path) -> str:
    """How messages call `path`."""
    return "standard input" if str(path) == STDIN else str(path)


def read_lines(path: str | Path) -> list[str]:
    """The lines of `path` ("-": standard input) without their ends; only LF and CRLF end a line.

    Raises UserError: no such file, nothing in it, or bytes that are not UTF-8 (with the line).
    """
    name = source_name(path)
    raw = sys.stdin.buffer.read() if str(path) == STDIN else read_bytes(path)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise UserError(f"{name} is empty")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{line}: not valid UTF-8 (byte 0x{raw[error.start]:02x}); "
            "convert the file to UTF-8"
        ) from error
    # not splitlines(): it also cuts at U+0085, U+2028 and others, which occur inside texts
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
