"""Measure loaded models: every arm over the same examples, in one process, in shuffled rounds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from turnout._version import __version__
from turnout.execute.pool import poolable
from turnout.measure import machine
from turnout.measure.arms import (
    Entry,
    cast,
    configs_of,
    plain_entries,
    random_entries,
    random_unit_entries,
)
from turnout.measure.compare import (
    Judged,
    Material,
    Progress,
    arm,
    judge,
    time_rounds,
    use_of_units,
)
from turnout.measure.config import MeasureConfig
from turnout.measure.heat import choose, heatmap
from turnout.measure.results import Heatmap, Machine, Results, TaskSummary
from turnout.tasks.base import Task
from turnout.train.data import listed
from turnout.train.precision import best_device, resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COUNTED = (
    "FLOPs are those of the host's blocks for the tokens of a text without padding. Embeddings, "
    "the task's head and the routers' own small heads and gates are left out, for every arm; "
    "seconds hold them all."
)


def measure_models(
    dense: PreTrainedModel,
    routed: PreTrainedModel | Mapping[str, PreTrainedModel],
    static: Mapping[str, PreTrainedModel],
    task: Task[Any],
    tokenizer: Any,
    examples: datasets.Dataset,
    config: MeasureConfig,
    *,
    name: str,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    progress: bool = True,
) -> Results:
    """Compare the dense host, routed models at each budget, random skipping and cut hosts.

    routed: one model, or several by name. Each place at which some of them decide (layers of a
    sequence, heads, ...) has its random arms; where several share a place, those spend what they
    spent on average.

    examples: raw labelled rows of the task; ``config.max_examples`` draws some of them. name: of
    the host, for the report. The models are moved and cast in place.
    """
    device = best_device()
    dtype = resolve(config.dtype, device)
    models = list(routed.values()) if isinstance(routed, Mapping) else [routed]
    for model in (dense, *models, *static.values()):
        cast(model.to(device), DTYPES[dtype]).eval()  # type: ignore[arg-type]
    chosen = _sample(examples, config.max_examples)
    encoded = task.encode(chosen, tokenizer)
    material = Material(
        task,
        encoded,
        listed(encoded),
        task.references(chosen),
        task.collator(tokenizer),
        config.batch_tokens,
        config.bootstrap,
        config.time_examples,
    )
    scales, draws = config.noise_scales, config.noise_draws
    plain = plain_entries(dense, routed, config.budgets, static, scales, draws)
    entries, done, seconds = _measure(dense, plain, material, config.repeats, progress)
    return Results(
        turnout_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        machine=Machine(**machine.describe()),
        model=name,
        task=TaskSummary(
            kind=task.config.kind,
            headline=task.headline,
            test_examples=len(encoded),
            labels=task.labels,
        ),
        dtype=dtype,
        batch_tokens=config.batch_tokens,
        arms=[arm(done[entry.name], done["dense"], seconds, material) for entry in entries],
        units={
            entry.name: use_of_units(done[entry.name])
            for entry in entries
            if entry.family in ("routed", "random", "noise")
        },
        heatmap=_heatmap(done, material, tokenizer),
        notes=[*notes, *_notes(models, examples, chosen, dtype), *_timed(config, chosen), COUNTED],
    )


def _measure(
    dense: PreTrainedModel,
    plain: list[Entry],
    material: Material,
    repeats: int,
    progress: bool,
) -> tuple[list[Entry], dict[str, Judged], dict[str, list[float]]]:
    """Random arms get the work that the routed ones were seen to spend, so they come second."""
    routed = [entry for entry in plain if entry.family == "routed"]
    several = any(entry.router for entry in routed)
    places = {entry.place: entry.model for entry in routed}
    chances = len(places) * len({entry.budget for entry in routed})
    bar = Progress((len(plain) + chances) * (1 + repeats), progress)
    done: dict[str, Judged] = {}

    def each(entries: list[Entry]) -> None:
        for entry in entries:
            done[entry.name] = judge(entry, material)
            bar.step(entry.name)

    try:
        each(plain)
        chance: list[Entry] = []
        for place, model in places.items():
            named, configs = place if several else None, configs_of(model)
            if any(config.owns_units for config in configs):
                asked = [e.budget for e in routed if e.place == place and e.budget is not None]
                chance += random_unit_entries(model, list(dict.fromkeys(asked)), named)
                continue
            found: dict[float, list[float]] = {}
            for entry in routed:
                if entry.budget is not None and (not several or entry.place == place):
                    share = done[entry.name].flops / done["dense"].flops
                    found.setdefault(entry.budget, []).append(share)
            spent = {budget: fmean(shares) for budget, shares in found.items()}
            chance += random_entries(dense, spent, configs, named)
        each(chance)
        entries = [*plain, *chance]
        return entries, done, time_rounds(entries, material, repeats, bar)
    finally:
        bar.close()


def _heatmap(done: Mapping[str, Judged], material: Material, tokenizer: Any) -> Heatmap | None:
    """From the routed arm whose budget is nearest to a half."""
    routed = [judged for judged in done.values() if judged.entry.family == "routed"]
    if not routed:
        return None
    middle = min(routed, key=lambda judged: abs((judged.entry.budget or 0.0) - 0.5))
    place = choose(material.lengths, middle.result.units)
    return heatmap(middle.entry, material.rows[place], material.collate, tokenizer)


def _sample(examples: datasets.Dataset, most: int | None) -> datasets.Dataset:
    """At most so many examples, drawn with a fixed seed, in their order."""
    if most is None or most >= len(examples):
        return examples
    drawn = np.random.default_rng(0).permutation(len(examples))[:most]
    return examples.select(np.sort(drawn))


def _timed(config: MeasureConfig, chosen: datasets.Dataset) -> list[str]:
    count = config.time_examples
    if count is None or count >= len(chosen):
        return []
    return [f"Time is that of the first {count:,} of the {len(chosen):,} examples judged."]


def _notes(
    routed: Sequence[PreTrainedModel],
    examples: datasets.Dataset,
    chosen: datasets.Dataset,
    dtype: str,
) -> list[str]:
    share = (
        "get the share of the work that the routed arm of the same name was seen to spend."
        if len(routed) == 1
        else "get the share of the work that the routed arms which decide there spend on average."
    )
    noisy = [model for model in routed if model.turnout.noise]  # type: ignore[union-attr]
    routed = [model for model in routed if configs_of(model)]
    notes = [
        "Random arms skip what the routers decide about (layers, heads, experts, ...) in the dense "
        f"host, drawn with a fixed seed, and {share}"
    ] * bool(routed)
    if noisy:
        notes.append(
            "Noise arms are the trained model at its own budget with its noise scaled: noise-100 "
            "is as trained, noise-0 without. Their quality is the mean over draws of noise; its "
            "interval is over examples, and `noise.spread` over draws. Drawing is not counted as "
            "work; seconds hold it."
        )
    if any(config.owns_units for model in routed for config in configs_of(model)):
        notes.append(
            "For units that the dense host lacks (adapters, copied experts) the random arm is the "
            "routed model with units drawn at random for each input, as many as its router takes."
        )
    if len(chosen) < len(examples):
        notes.append(f"{len(chosen):,} of {len(examples):,} test examples, drawn with seed 0.")
    if dtype != "fp32":
        notes.append(f"Hosts run in {dtype}; the routers keep fp32.")
    if not all(poolable(model) for model in routed):
        some = "These routes" if len(routed) == 1 else "Some of these routes"
        notes.append(f"{some} cannot be pooled across batches: they run batch by batch.")
    return notes
