"""All of `turnout augment`: read, write, sift, save, judge, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.errors import UserError
from turnout.generation.augment import Agrees, AugmentSettings, Row, sift
from turnout.generation.augment_files import Part, read_rows, write_rows, written_for
from turnout.generation.judging import Gain, classifier, gain, plain_check, run_check
from turnout.generation.settings import WriteSettings
from turnout.generation.terminal import interruptible
from turnout.generation.training_gain import recipe_gain
from turnout.generation.writer import Writer

SUFFIXES = (".csv", ".tsv", ".jsonl")
NO_CHECK = "none"


@dataclass(frozen=True)
class Job:
    """What to read and to write; see the command's options."""

    model: str
    data: str
    out: Path
    text: str = "text"
    label: str = "label"
    check: str | None = None
    judge: str | None = None
    recipe: Path | None = None
    device: str | None = None


def run_job(
    job: Job,
    settings: AugmentSettings,
    how: WriteSettings,
    bar: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    say: Callable[[str], None],
) -> str | None:
    """Write ``job.out`` and give the report as text; None after an interrupt. What was written then
    is kept beside it, and the same call goes on. Raises UserError as the parts do."""
    if job.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"out: {job.out}: name a file that ends in {', '.join(SUFFIXES)}")
    rows = read_rows(job.data, job.text, job.label)
    test = None if job.judge is None else read_rows(job.judge, job.text, job.label)
    agrees = _check(job, rows)
    if test is not None and job.recipe is None:
        classifier(rows)  # before the work: rows that nothing can be learned from
    writer = Writer.open(job.model, job.device)
    decides = [job.model, [[r.text, r.label] for r in rows], how.model_dump(mode="json")]
    part = Part(job.out, [*decides, settings.model_dump(include=_DECIDE)])
    if part.texts:
        say(f"going on after {len(part.texts):,} texts")
    with interruptible(writer), bar(len(rows) * settings.per_example) as done:
        written, stopped = written_for(rows, settings, writer, how, part, done)
    if stopped:
        return None
    found = sift(rows, written, settings, agrees)
    write_rows(job.out, found.rows, job.text, job.label, {"source": found.sources})
    lines = [json.dumps(found.report.facts())]
    if test is not None:
        if job.recipe is None:
            judged = gain(rows, found.rows, test)
        else:
            runs = job.out.with_name(f"{job.out.name}.runs")
            judged = recipe_gain(job.recipe, rows, found.rows, test, runs, job.device, say)
        lines.append(json.dumps(_facts(judged)))
    part.done()
    return "\n".join(lines)


_DECIDE = {"per_example", "examples", "template", "seed"}  # the others only sift


def _check(job: Job, rows: list[Row]) -> Agrees | None:
    if job.check == NO_CHECK:
        return None
    return plain_check(rows) if job.check is None else run_check(job.check, job.device)


def _facts(found: Gain) -> dict[str, Any]:
    return {
        "accuracy_without": round(found.without, 4),
        "accuracy_with": round(found.with_new, 4),
        "gain": round(found.gain, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "test_rows": found.rows,
    }
