"""Tagged sentences from CoNLL columns or from tables with a list of words a row; tags as BIO."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.errors import UserError
from turnout.tasks.conll import Scheme, read_conll, to_bio
from turnout.tasks.table import Table, is_hub_name, read_hub, read_table
from turnout.tasks.text import STDIN, read_lines

TOKENS, TAGS, TEXT = "tokens", "tags", "text"
SHORT = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # what is abbreviated letter by letter
OWN = re.compile(r"['’]s$")
TAG_COLUMNS = ("ner_tags", "tags", "labels")


@dataclass
class Tagged:
    """Sentences with BIO tags. `lines` (CoNLL only): where each sentence begins; else `table`."""

    tokens: list[list[str]]
    tags: list[list[str]]
    source: str
    lines: list[int] | None = None
    table: Table | None = None

    def at(self, row: int, word: int) -> str:
        """The place of a word for a message."""
        if self.lines is not None:
            return f"{self.source}:{self.lines[row] + word}"
        place = self.table.at(row) if self.table else f"{self.source}, row {row + 1}"
        return f"{place}, word {word + 1}"


def read_tagged(
    source: str, split: str, token_column: int | str, label_column: int | str, scheme: Scheme
) -> Tagged:
    """Sentences of one split. Raises UserError for what is wrong, with file and line."""
    table = _table(source, split)
    if table is None:
        sentences = read_conll(
            source, _number("token_column", token_column), _number("label_column", label_column)
        )
        data = Tagged(sentences.tokens, sentences.tags or [], source, lines=sentences.lines)
    else:
        tokens = _lists(table, _name(table, token_column, (TOKENS,)))
        tags = _lists(table, _name(table, label_column, TAG_COLUMNS))
        for row, (words, names) in enumerate(zip(tokens, tags, strict=True)):
            if len(words) != len(names):
                raise UserError(f"{table.at(row)}: found {len(names)} tags for {len(words)} words")
        data = Tagged(tokens, tags, source, table=table)
    for row, names in enumerate(data.tags):
        try:
            data.tags[row] = to_bio(names, scheme)
        except ValueError as error:
            word, reason = error.args
            raise UserError(f"{data.at(row, word)}: {reason}") from error
    return data


def read_words(path: str, token_column: int | str) -> list[list[str]]:
    """Words without tags: CoNLL columns, a table with words or with texts, or (.txt, "-") a text a
    line; texts are cut by ``cut_words``.

    Raises UserError for a .txt file that can only be CoNLL columns: training would read it so.
    """
    if path == STDIN or Path(path).suffix.lower() == ".txt":
        texts = read_lines(path)
        if path != STDIN and _columns([line.split() for line in texts]):
            raise UserError(
                f"{path} holds CoNLL columns, and a .txt file to predict has a text a line: "
                "give it the name .conll"
            )
        return [cut_words(line) for line in texts]
    table = read_table(path) if _is_table(path) else _table(path, None)
    if table is None:
        return read_conll(path, _number("token_column", token_column), None).tokens
    if TEXT in table.columns and not {token_column, TOKENS} & set(table.columns):
        for row, value in enumerate(table.columns[TEXT]):
            if not isinstance(value, str):
                raise UserError(f"{table.at(row)}: {TEXT!r} is {_short(value)}; expected a text")
        return [cut_words(text) for text in table.columns[TEXT]]
    return _lists(table, _name(table, token_column, (TOKENS,)))


def _is_table(path: str) -> bool:
    """Is it a .csv, or a .tsv whose first line names a column of texts: others are CoNLL's."""
    suffix = Path(path).suffix.lower()
    return suffix == ".csv" or (
        suffix == ".tsv" and TEXT in next(iter(read_lines(path)), "").split("\t")
    )


def cut_words(text: str) -> list[str]:
    """Words of a text: cut at blanks, punctuation at either end of a word apart, and 's. Points
    stay with what is abbreviated (U.S.)."""
    found = list[str]()
    for piece in text.split():
        inside = [n for n, c in enumerate(piece) if unicodedata.category(c)[0] not in "PS"]
        begin, end = (inside[0], inside[-1] + 1) if inside else (len(piece), len(piece))
        front, word, back = piece[:begin], piece[begin:end], piece[end:]
        if SHORT.fullmatch(word) and back.startswith("."):
            word, back = f"{word}.", back[1:]
        own = OWN.search(word)
        stem = word[: own.start()] if own and own.start() else word
        found += [*front, stem, word[len(stem) :], *back]
    return [word for word in found if word]


def _table(source: str, split: str | None) -> Table | None:
    """The table, or None when `source` is a file of CoNLL columns."""
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        raise UserError(f"{source}: for entities give CoNLL columns, .jsonl or .parquet, not .csv")
    if suffix in (".jsonl", ".parquet"):
        return read_table(source)
    return read_hub(source, split) if split and is_hub_name(source) else None


def _columns(lines: list[list[str]]) -> bool:
    """Do these lines look like CoNLL: columns, with blank lines between sentences."""
    widths = {len(line) for line in lines if line}
    return (lines[0][:1] == ["-DOCSTART-"]) or (
        len(widths) == 1 and min(widths) > 1 and len(lines) > 5 and [] in lines[1:-1]
    )


def _number(field: str, column: int | str) -> int:
    if isinstance(column, str):
        raise UserError(f"`{field}: {column}`: CoNLL files have numbered columns; give a number")
    return column


def _name(table: Table, column: int | str, usual: tuple[str, ...]) -> str:
    """The column's name; a number means: not set, take the first of the usual names."""
    name = (
        column
        if isinstance(column, str)
        else next((n for n in usual if n in table.columns), usual[0])
    )
    table.require(name)
    return name


def _lists(table: Table, name: str) -> list[list[str]]:
    for row, value in enumerate(table.columns[name]):
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise UserError(
                f"{table.at(row)}: {name!r} is {_short(value)}; expected a list of texts"
            )
    return table.columns[name]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
