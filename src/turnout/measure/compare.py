"""Measure several models against each other: quality, work, memory, then time in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from turnout.execute.batches import Collate, Row, lengths_of
from turnout.execute.pool import BulkResult
from turnout.measure.arms import Entry
from turnout.measure.flops import depth_of, mean_flops
from turnout.measure.results import Arm, Difference, NoiseDraws, Quality, Seconds, Speedup
from turnout.measure.stats import (
    bootstrap_difference,
    bootstrap_interval,
    median_interval,
    ratio_interval,
)
from turnout.measure.timing import interleaved, peak_memory
from turnout.tasks.base import Task
from turnout.train.data import predictions_of


@dataclass(frozen=True, eq=False)
class Material:
    """What every arm reads: encoded rows, the same as plain dicts (quick to pick from while time
    is taken), gold labels, and how to make batches."""

    task: Task[Any]
    encoded: datasets.Dataset
    rows: Sequence[Row]
    references: Any
    collate: Collate
    batch_tokens: int
    bootstrap: int
    timed: int | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return lengths_of(self.rows)


@dataclass(frozen=True, eq=False)
class Judged:
    """An arm after its first run, or its first ones: all but time. spread: standard deviation of
    the quality over draws of noise; None = there was one."""

    entry: Entry
    result: BulkResult
    flops: float
    memory: int | None
    quality: Quality
    counts_NK: np.ndarray
    report: dict[str, Any]
    spread: float | None = None


def judge(entry: Entry, material: Material) -> Judged:
    """Run an arm once, or once a draw of its noise: answers, use of units, FLOPs and peak memory.
    It also warms the arm up. Of several draws, quality is the mean, and the report that of the
    first."""
    found: list[BulkResult] = []

    routing: Any = getattr(entry.model, "turnout", None)

    def once() -> None:
        if routing is not None and routing.noise:
            routing.seed = len(found)  # the same noise each time that this is measured
        found.append(
            entry.run(material.rows, material.collate, material.batch_tokens, material.task)
        )

    memory = peak_memory(once)
    result, task = found[0], material.task
    written = [len(ids) for ids in result.logits] if task.generates else None
    flops = mean_flops(entry.model, material.lengths, result, written)
    answers = predictions_of(task, material.encoded, result.logits)
    counts = [task.counts(answers, material.references)]
    for _ in range(entry.draws - 1):
        once()
        again = predictions_of(task, material.encoded, found[-1].logits)
        counts.append(task.counts(again, material.references))
    mean_NK = np.mean(counts, axis=0) if len(counts) > 1 else counts[0]
    value, low, high = bootstrap_interval(mean_NK, task.score, n=material.bootstrap)
    spread = None
    if len(counts) > 1:
        each = [task.score(np.sum(count, axis=0)) for count in counts]
        value, spread = float(np.mean(each)), float(np.std(each))
    low, high = min(low, value), max(high, value)
    quality = Quality(metric=task.headline, value=value, low=low, high=high)
    report = task.report(answers, material.references)
    return Judged(entry, result, flops, memory, quality, mean_NK, report, spread)


def time_rounds(
    entries: Sequence[Entry], material: Material, repeats: int, bar: Progress
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, over the first ``material.timed`` rows. Every arm was run
    by ``judge``, so none is cold."""
    rows = material.rows[: material.timed]

    def timed(entry: Entry) -> Callable[[], None]:
        def once() -> None:
            entry.run(rows, material.collate, material.batch_tokens, material.task)
            bar.step(entry.name)

        return once

    return interleaved({entry.name: timed(entry) for entry in entries}, repeats, warmup=0)


def arm(judged: Judged, dense: Judged, seconds: dict[str, list[float]], material: Material) -> Arm:
    """All that is known of one arm."""
    entry, model = judged.entry, judged.entry.model
    runs = seconds[entry.name]
    routed = hasattr(model, "turnout")
    units = float(judged.result.units.mean()) if routed else float(depth_of(model))
    # what a plainly cut host spends of the whole one; routers know what they spent themselves
    share = judged.result.share if routed else judged.flops / dense.flops
    change = bootstrap_difference(
        judged.counts_NK, dense.counts_NK, material.task.score, n=material.bootstrap
    )
    middle, speed = median_interval(runs), ratio_interval(seconds[dense.entry.name], runs)
    return Arm(
        name=entry.name,
        family=entry.family,
        router=entry.router,
        place=entry.place,
        budget=entry.budget,
        noise=None
        if entry.noise is None
        else NoiseDraws(scale=entry.noise, draws=entry.draws, spread=judged.spread or 0.0),
        share=min(1.0, share),
        quality=judged.quality,
        to_dense=Difference(**change._asdict()),
        report=judged.report,
        units_run=units,
        units_total=depth_of(dense.entry.model),
        flops_per_example=judged.flops,
        seconds=Seconds(median=middle.value, low=middle.low, high=middle.high, runs=runs),
        peak_memory_bytes=judged.memory,
        speedup=Speedup(value=speed.value, low=speed.low, high=speed.high),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def use_of_units(judged: Judged) -> dict[str, list[float]]:
    """Site key -> share of rows that ran it, for every site of a routed model."""
    routing: Any = judged.entry.model.turnout
    use = judged.result.use
    return {site.key: [min(1.0, use.get(site.key, 0.0))] for site in routing.sites}


class Progress:
    """One bar over all runs of all arms."""

    def __init__(self, runs: int, shown: bool) -> None:
        self._bar = tqdm(total=runs, desc="measure", unit="run", disable=not shown)

    def step(self, name: str) -> None:
        """One run of this arm is done."""
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
