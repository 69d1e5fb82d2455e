"""Several continuations of each prompt: side by side for people, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from turnout.errors import UserError
from turnout.generation.settings import WriteSettings
from turnout.generation.terminal import facts_line, printable
from turnout.generation.writer import Writer, Written
from turnout.tasks.text import read_lines

LEAST = 24  # letters that a column has, at least


def prompts_of(given: Sequence[str], file: str | None) -> list[str]:
    """Prompts of the command line, then those of a file ("-": standard input), one a line; blank
    lines are passed over. Raises UserError where there is none."""
    found = [*given]
    if file is not None:
        found += [line for line in read_lines(file) if line.strip()]
    if not found:
        raise UserError("no prompt: give one, or a file of them with --file")
    return found


def continuations(
    writer: Writer,
    prompts: Sequence[str],
    settings: WriteSettings,
    samples: int,
    batch: int = 16,
    done: Callable[[int], None] | None = None,
) -> Iterator[list[Written]]:
    """The answers to each prompt, in the order of the prompts. Ends early after an interrupt. done:
    is told how many prompts are finished."""
    at_once = max(1, batch // samples)
    for first in range(0, len(prompts), at_once):
        part = prompts[first : first + at_once]
        # its own draws for each batch, and the same whichever prompts came before it
        own = settings if settings.seed is None else settings.but(seed=settings.seed + first)
        found = writer.write(part, own, samples=samples, batch=batch)
        for place in range(len(found) // samples):
            yield found[place * samples : (place + 1) * samples]
        if done is not None:
            done(first + len(part))
        if not found or any(each.stop == "interrupted" for each in found):
            return


def rows_of(prompt: str, answers: Sequence[Written]) -> Iterator[str]:
    """JSON lines: prompt, text, and what it cost."""
    for place, each in enumerate(answers):
        row: dict[str, Any] = {"prompt": prompt, "sample": place, "text": each.text}
        yield json.dumps({**row, **each.facts()}, ensure_ascii=False)


def shown(
    prompt: str, answers: Sequence[Written], side_by_side: bool, width: int
) -> RenderableType:
    """Answers under their prompt: below each other, or in as many columns as fit."""
    panels = [
        Panel(Text(printable(each.text).strip()), subtitle=Text(facts_line(each)))
        for each in answers
    ]
    head = Text(printable(prompt), style="bold")
    if not side_by_side:
        return Group(head, *panels)
    across = max(1, min(len(panels), width // LEAST))
    grid = Table.grid(expand=True)
    for _ in range(across):
        grid.add_column(ratio=1)
    for first in range(0, len(panels), across):
        grid.add_row(*panels[first : first + across])
    return Group(head, grid)
