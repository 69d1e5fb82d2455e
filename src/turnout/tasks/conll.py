"""CoNLL columns (one word a line, a blank line after each sentence) and the IOB tags in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from turnout.errors import UserError
from turnout.tasks.text import read_lines

Scheme = Literal["auto", "IOB1", "BIO"]
Span = tuple[str, int, int]


@dataclass
class Sentences:
    """Sentences with the line where each begins; word j of sentence i is on line lines[i] + j."""

    source: str
    tokens: list[list[str]]
    tags: list[list[str]] | None
    lines: list[int]


def read_conll(path: str, token_column: int, label_column: int | None) -> Sentences:
    """Read the token column and, unless `label_column` is None, the tag column (-1: the last).

    Fields are separated by tabs where a line has one, else by runs of blanks; lines that begin with
    -DOCSTART- are dropped. Raises UserError (file, line, columns found and expected) for a line of
    another width than the first, and for a column that does not exist.
    """
    out = Sentences(path, [], None if label_column is None else [], [])
    width = first = 0
    fresh = True
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            fresh = True
            continue
        fields = line.split("\t") if "\t" in line else line.strip(" ").split(" ")
        fields = fields if "\t" in line else [field for field in fields if field]
        if not width:
            width, first = len(fields), number
            _check_columns(path, number, width, token_column, label_column)
        if len(fields) != width:
            raise UserError(
                f"{path}:{number}: found {len(fields)} columns, "
                f"expected {width} (as in line {first})"
            )
        if not fields[token_column]:
            raise UserError(f"{path}:{number}: the token (column {token_column}) is empty")
        if fresh:
            out.tokens.append([])
            out.lines.append(number)
            if out.tags is not None:
                out.tags.append([])
            fresh = False
        out.tokens[-1].append(fields[token_column])
        if out.tags is not None and label_column is not None:
            out.tags[-1].append(fields[label_column])
    if not out.tokens:
        raise UserError(f"{path} has no sentences")
    return out


def _check_columns(path: str, line: int, width: int, token: int, label: int | None) -> None:
    for name, column in (("token_column", token), ("label_column", label)):
        if column is not None and not -width <= column < width:
            raise UserError(
                f"{path}:{line}: found {width} columns, so `{name}: {column}` does not exist "
                f"(0 to {width - 1}, or -1 for the last)"
            )
    if label is not None and token % width == label % width:
        raise UserError(
            f"{path}:{line}: found {width} columns: the token and the label would both be column "
            f"{token % width}; expected a token and a label on each line"
        )


def to_bio(tags: Sequence[str], scheme: Scheme = "auto") -> list[str]:
    """The same entities in BIO, where each begins with B-. "auto" takes IOB1, BIO and mixtures.

    Raises ValueError (index, reason) for a tag that is not O, B-type or I-type, and where `scheme`
    is named, for a tag that breaks it.
    """
    out = []
    inside = ""  # type of the entity that the previous word belongs to
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not kind):
            raise ValueError(index, f"tag {tag!r} is not 'O', 'B-type' or 'I-type'")
        if scheme == "BIO" and prefix == "I" and kind != inside:
            raise ValueError(index, f"{tag!r} begins an entity, which in BIO must begin with 'B-'")
        if scheme == "IOB1" and prefix == "B" and kind != inside:
            raise ValueError(
                index, f"{tag!r} does not follow an entity of its type, as 'B-' must in IOB1"
            )
        starts = prefix == "B" or kind != inside
        out.append("O" if tag == "O" else f"{'B' if starts else 'I'}-{kind}")
        inside = kind
    return out


def spans(tags: Sequence[str]) -> set[Span]:
    """Entities (type, first word, one past the last) as conlleval reads them: B-, or an I- that
    does not continue its own type, begins one. So IOB1, BIO and a model's stray tags all read."""
    found: set[Span] = set()
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix == "B" or name != kind):
            found.add((kind, start, index))
            kind = ""
        if name and not kind:
            kind, start = name, index
    return found
