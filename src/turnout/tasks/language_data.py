"""Texts for a language model: documents out of files, tokens out of documents, rows out of tokens.

A window is a piece of a document that a model reads at once. ``labels`` follow the hosts' own
convention: a token's label is the token itself, -100 where it is not to be predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from turnout.errors import UserError
from turnout.tasks.base import IGNORED
from turnout.tasks.table import is_hub_name, read_hub, read_table
from turnout.tasks.text import STDIN, read_lines

Documents = Literal["line", "blank-line", "file"]
Window = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """A document in tokens. text_bytes[i]: UTF-8 bytes of the text up to the end of token i."""

    ids: list[int]
    text_bytes: list[int]


def read_documents(source: str, split: str, column: str, documents: Documents) -> list[str]:
    """The documents of a plain text file, as `documents` divides it, or of a table or a set on the
    Hub, one a row of a column.

    Raises UserError: nothing there, no such column, a row without a text.
    """
    if source == STDIN or source.endswith(".txt"):
        found = [text for text in _divided(read_lines(source), documents) if text.strip()]
        if not found:
            raise UserError(f"{source}: no line has a text")
        return found
    table = read_hub(source, split) if is_hub_name(source) else read_table(source)
    table.require(column)
    texts = table.columns[column]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{table.at(row)}: {column!r} is {text!r}; expected a text")
    found = [text for text in texts if text.strip()]
    if not found:
        raise UserError(f"{source}: no row has a text in {column!r}")
    return found


def _divided(lines: list[str], documents: Documents) -> Iterator[str]:
    if documents == "line":
        yield from lines
        return
    if documents == "file":
        yield "\n".join(lines)
        return
    part: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            part.append(line)
        elif part:
            yield "\n".join(part)
            part = []


def tokens_of(texts: Sequence[str], tokenizer: Any, ends: bool) -> list[Tokens]:
    """Documents in tokens, with the special tokens that the tokenizer itself puts. ends: a document
    ends with the end-of-text token, where there is one."""
    # verbose: a document may be longer than what a model reads at once
    encoded = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    end, made = tokenizer.eos_token_id, []
    for text, ids, places in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        known, bytes_, reached = 0, [], 0
        for _, last in places:
            if last > reached:  # special tokens stand at (0, 0)
                known += len(text[reached:last].encode())
                reached = last
            bytes_.append(known)
        ids = list(ids)
        if bytes_:
            bytes_[-1] += len(text[reached:].encode())  # blanks that no token holds
        if ends and end is not None and (not ids or ids[-1] != end):
            ids.append(end)
            bytes_.append(bytes_[-1] if bytes_ else 0)
        made.append(Tokens(ids, bytes_))
    return made


def windows(tokens: Tokens, size: int, step: int) -> Iterator[Window]:
    """A document in windows of at most `size` tokens that begin `step` tokens apart. Each token has
    a label once, in the first window that holds it, but for the document's first, which nothing
    stands before. `bytes`: of the text that the labels stand for."""
    ids, total = tokens.ids, len(tokens.ids)
    done = 1  # tokens that have been predicted, or cannot be
    for start in range(0, total, step):
        end = min(start + size, total)
        if end <= done:
            return
        labels = [IGNORED] * (done - start) + ids[done:end]
        before = tokens.text_bytes[done - 1]
        yield {
            "input_ids": ids[start:end],
            "labels": labels,
            "bytes": tokens.text_bytes[end - 1] - before,
        }
        done = end


def packed(pieces: Sequence[Window], size: int) -> list[Window]:
    """Windows put together into rows of at most `size` tokens, in their order; a row is closed when
    the next window does not fit. `position_ids` begin anew with each window, which is how hosts
    keep them apart; a window's first token has no label, so nothing is guessed from another one."""
    rows: list[Window] = []
    for piece in pieces:
        ids, labels = piece["input_ids"], piece["labels"]
        if not rows or len(rows[-1]["input_ids"]) + len(ids) > size:
            rows.append({"input_ids": [], "labels": [], "position_ids": []})
        rows[-1]["input_ids"] += ids
        rows[-1]["labels"] += labels
        rows[-1]["position_ids"] += range(len(ids))
    return rows
