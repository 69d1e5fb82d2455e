"""`turnout augment`: labelled rows from a file, new ones into another; goes on where it stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from turnout.errors import UserError
from turnout.files import write_text
from turnout.generation.augment import AugmentSettings, Row, prompts
from turnout.generation.settings import WriteSettings
from turnout.generation.writer import Writer
from turnout.tasks.table import read_table

CHUNK = 32  # prompts between two saves


def read_rows(path: str, text: str, label: str) -> list[Row]:
    """Labelled rows of a CSV, TSV, JSON lines or Parquet file. Raises UserError: no such file or
    column, an empty text or label."""
    table = read_table(path)
    table.require(text, label)
    rows = []
    for place, (each, name) in enumerate(
        zip(table.columns[text], table.columns[label], strict=True)
    ):
        for column, value in ((text, each), (label, name)):
            if not str("" if value is None else value).strip():
                raise UserError(f"{table.at(place)}: {column!r} is empty")
        rows.append(Row(str(each), str(name)))
    return rows


def write_rows(
    path: str | Path, rows: Sequence[Row], text: str, label: str, more: dict[str, list[Any]]
) -> None:
    """Rows as CSV, TSV or JSON lines, by the name of the file. more: further columns."""
    records = [
        {text: row.text, label: row.label, **{name: values[i] for name, values in more.items()}}
        for i, row in enumerate(rows)
    ]
    if str(path).lower().endswith(".jsonl"):
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_text(path, "".join(lines))
        return
    buffer = io.StringIO()
    tab = str(path).lower().endswith(".tsv")
    sheet = csv.DictWriter(
        buffer, [text, label, *more], delimiter="\t" if tab else ",", lineterminator="\n"
    )
    sheet.writeheader()
    sheet.writerows(records)
    write_text(path, buffer.getvalue())


class Part:
    """What was written so far, beside the file that it will become. Its first line has a hash of
    all that decides what is written: with other settings it begins anew."""

    def __init__(self, out: Path, decides: Any) -> None:
        self.path = out.with_name(f"{out.name}.part")
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        self.head = json.dumps({"settings": digest})
        self.texts = self._read()

    def _read(self) -> list[str]:
        if not self.path.is_file():
            return []
        first, *lines = self.path.read_bytes().decode("utf-8", "replace").split("\n")
        if first != self.head:
            return []
        texts = []
        for line in lines[:-1]:  # the last one is empty, or was cut short
            try:
                texts.append(str(json.loads(line)))
            except json.JSONDecodeError:
                break
        # whole chunks alone: each has a seed, and is drawn as it would have been
        return texts[: len(texts) // CHUNK * CHUNK]

    def add(self, texts: Sequence[str]) -> None:
        """Keep more."""
        self.texts += texts
        lines = [self.head, *(json.dumps(each) for each in self.texts)]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def done(self) -> None:
        """Nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def written_for(
    rows: Sequence[Row],
    settings: AugmentSettings,
    writer: Writer,
    how: WriteSettings,
    part: Part,
    done: Callable[[int], None],
) -> tuple[list[tuple[int, str]], bool]:
    """Texts for each prompt, with the place of its row; those of an earlier call are not written
    again. Also: was it interrupted."""
    asked = prompts(rows, settings)
    done(len(part.texts))
    while len(part.texts) < len(asked):
        first = len(part.texts)
        chunk = [prompt for _, prompt in asked[first : first + CHUNK]]
        # a seed for each chunk, so that going on draws what one call would have drawn
        seed = zlib.crc32(f"{settings.seed} {first}".encode())
        found = writer.write([fitting(writer, p, how) for p in chunk], how.but(seed=seed))
        if len(found) < len(chunk) or any(each.stop == "interrupted" for each in found):
            return [], True
        part.add([each.text for each in found])
        done(len(part.texts))
    places = [place for place, _ in asked]
    return list(zip(places, part.texts, strict=True)), False


def fitting(writer: Writer, prompt: str, how: WriteSettings) -> str:
    """A prompt without its first lines, where the context has no room for all of them."""
    if writer.context is None:
        return prompt
    room = max(writer.context - how.max_new_tokens, writer.context // 2)
    lines = prompt.split("\n")
    while len(lines) > 2 and len(writer.encode("\n".join(lines))) > room:
        del lines[0]
    return "\n".join(lines)
