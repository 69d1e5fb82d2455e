"""Translation English to German from scratch: a small encoder-decoder, dense and routed.

Multi30k (29,000 captions), tokenizer and model of our own: byte pairs, a BART of 3 + 3 layers. The
dense model is trained first; routed ones start from it and are trained on, on labels alone. Beside
them, with the same steps in all: the dense model trained on as long, and smaller ones (2 + 2 and
3 + 1 layers) from scratch. All are measured in one run: BLEU is sacreBLEU's on test_2016_flickr,
greedy; time is that of writing all of the answers, in turns. The dense model is judged with four
beams too.
"""

from __future__ import annotations

import gzip
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import Benchmark, Row, goal, main, workers_for
from frontier_claim import WORK, named
from tasks_here import Call

from turnout.contest.standings import points_of
from turnout.execute.generate import generate_bulk
from turnout.files import write_text
from turnout.measure.frontier import front, line_at
from turnout.measure.models import measure_models
from turnout.recipe import Recipe
from turnout.run import Run
from turnout.train.data import listed
from turnout.train.new_host import NewHost, new_host
from turnout.train.pipeline import train
from turnout.workers import in_processes

SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
SIZES = {
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "max_position_embeddings": 128,
    "scale_embedding": True,
}
EPOCHS, MORE, LATER = 8.0, 2.0, 3e-4  # then so many more, at this learning rate
SMALLER = {
    "2 + 2": {"encoder_layers": 2, "decoder_layers": 2},
    "3 + 1": {"encoder_layers": 3, "decoder_layers": 1},
}
ROUTERS: dict[str, list[dict[str, Any]]] = {
    "encoder layers": [{"kind": "gate", "stack": "encoder"}],
    "decoder ffn by token": [
        {"kind": "gate", "stack": "decoder", "site": "ffn", "granularity": "token"}
    ],
    "both": [
        {"kind": "gate", "stack": "encoder"},
        {"kind": "gate", "stack": "decoder", "site": "ffn", "granularity": "token"},
    ],
}


def files_of(folder: Path, out: Path, quick: bool) -> dict[str, str]:
    """The captions as rows of ``text`` and ``target``."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for split, name in SPLITS.items():
        sides = []
        for language in ("en", "de"):
            with gzip.open(folder / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
                sides.append([line.strip() for line in file])
        rows = [
            {"text": text, "target": target}
            for text, target in zip(*sides, strict=True)
            if text and target
        ]
        rows = rows[:2000] if quick and split == "train" else rows[:100] if quick else rows
        path = out / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_text(path, "".join(f"{line}\n" for line in lines))
        found[split] = str(path.resolve())
    return found


def host_of(files: dict[str, str], out: Path, seed: int, **layers: int) -> Path:
    """A fresh host and its tokenizer."""
    if out.is_dir():
        return out
    page = {
        "family": "bart",
        "config": {**SIZES, **layers},
        "seed": seed,
        "tokenizer": {
            "texts": [files["train"]],
            "columns": ["text", "target"],
            "vocabulary": 8000,
            "max_length": 128,
        },
    }
    return new_host(NewHost.model_validate(page), out)


def recipe(
    host: Path,
    files: dict[str, str],
    seed: int,
    quick: bool,
    routers: list[dict[str, Any]] | None = None,
    epochs: float = EPOCHS,
    rate: float = 1e-3,
) -> Recipe:
    """Of one model; routed_epochs count where it has routers."""
    task = {"kind": "rewriting", "max_length": 64, "max_target": 64, "seed": seed, **files}
    return Recipe.model_validate(
        {
            "model": str(host),
            "task": task,
            "routers": routers or ROUTERS["both"],
            "objectives": {"distill": 0.0, "exits": 0.0},
            "train": {
                "epochs": 1.0 if quick else epochs,
                "routed_epochs": 1.0 if quick else MORE,
                "batch_size": 64,
                "learning_rate": rate,
                "routed_learning_rate": LATER,
                "dropout": 0.1,
                "precision": "fp32" if quick else "bf16",
                "evaluate_every": 100_000,
                "seed": seed,
            },
            "measure": {
                "budgets": [0.5] if quick else [0.8, 0.6, 0.4],
                "repeats": 3,
                "time_examples": 40 if quick else 200,
                "dtype": "fp32",  # what is faster differs from machine to machine
            },
        }
    )


def trained(made: Recipe, out: Path, dense: Path | None) -> Run:
    """A routed model that starts from a dense one; None = a dense model alone."""
    print(f"== {out.name}", flush=True)
    return train(made, out, dense=dense, only_dense=dense is None, progress=False)


def measured(benchmark: Benchmark, folder: Path, files: dict[str, str], seed: int) -> list[Row]:
    """All models of a seed, trained side by side and measured in one run."""
    quick, whole = benchmark.quick, EPOCHS + MORE

    def plain(name: str, host: Path, epochs: float, rate: float = 1e-3) -> Call:
        return (trained, recipe(host, files, seed, quick, None, epochs, rate), folder / name, None)

    host = host_of(files, folder / "host", seed)
    small = {
        name: host_of(files, folder / f"host-{name.replace(' ', '')}", seed, **layers)
        for name, layers in SMALLER.items()
    }
    calls = [plain("first", host, EPOCHS)]
    calls += [plain(f"small-{n.replace(' ', '')}", path, whole) for n, path in small.items()]
    first, *found = in_processes(calls, workers_for(calls))
    static = dict(zip(small, found, strict=True))
    calls = [plain("trained-on", first.dense, MORE, LATER)]
    for name, routers in ROUTERS.items():
        made = recipe(host, files, seed, quick, routers)
        calls.append((trained, made, folder / name.replace(" ", "-"), first.dense))
    on, *found = in_processes(calls, workers_for(calls))
    static["trained on"] = on
    routed = dict(zip(ROUTERS, found, strict=True))
    task, tokenizer, dense = first.task(), first.tokenizer(), first.load_dense()
    test = task.load()["test"]
    results = measure_models(
        dense,
        {name: run.load_routed() for name, run in routed.items()},
        {name: run.load_dense() for name, run in static.items()},
        task,
        tokenizer,
        test,
        first.recipe.measure,
        name="BART 3 + 3",
    )
    (arm,) = (arm for arm in results.arms if arm.family == "dense")
    rows: list[Row] = [{"seed": seed, **asdict(point)} for point in points_of(results)]
    rows[0]["signature"] = arm.report["signature"]
    encoded = task.encode(test, tokenizer)
    options = {**task.generation, "num_beams": 4}
    found = generate_bulk(dense, listed(encoded), task.collator(tokenizer), **options)
    counts = task.counts(task.predictions(found.logits), task.references(test))
    return [*rows, {"seed": seed, "beams": 4, "quality": task.score(counts.sum(0))}]


def verdict(rows: list[Row]) -> dict[str, Row]:
    """BLEU of the dense model, and what each routed model gains over smaller ones at equal time."""
    entries: dict[str, Row] = {}
    points = [row for row in rows if "arm" in row]
    seeds = sorted({row["seed"] for row in points})
    for name, kept in (
        ("dense, greedy", [row for row in points if row["family"] == "dense"]),
        ("dense, 4 beams", [row for row in rows if row.get("beams") == 4]),
    ):
        entries[f"BLEU, {name}"] = {
            "value": statistics.fmean(100 * row["quality"] for row in kept),
            "goal": "a figure, no goal",
            "met": True,
        }
    # every routed arm at its own time: to take the best of several would be to choose by the test
    for arm in dict.fromkeys(row["arm"] for row in points if row["family"] == "routed"):
        here = [row for row in points if row["arm"] == arm]
        speed = statistics.fmean(row["speedup"] for row in here)
        gains = [_over_smaller(row, points) for row in here]
        known = [value for value in gains if value is not None]
        title = f"{arm} at {speed:.2f}x: BLEU over smaller models of the same time"
        if len(known) == len(seeds):
            entries[title] = goal(100 * statistics.fmean(known), at_least=0)
        else:
            entries[title] = {"value": None, "goal": "no smaller model is as fast", "met": False}
    return entries


def _over_smaller(row: Row, points: list[Row]) -> float | None:
    """What an arm gains over the front of dense and smaller models of its seed, at its time; None
    where none of them is as fast."""
    others = [
        (1 / other["speedup"], other["quality"])
        for other in points
        if other["seed"] == row["seed"] and other["family"] in ("dense", "static")
    ]
    beside = line_at(front(others), 1 / row["speedup"])
    return None if beside is None else row["quality"] - beside


def run() -> None:
    benchmark = Benchmark("translation", "translation from scratch, dense and routed", (0,))
    for seed in benchmark.seeds:
        if benchmark.find(seed=seed) is None:
            folder = WORK / named("translation", seed, benchmark.quick)
            data = folder.with_name(f"{folder.name}-data")
            files = files_of(benchmark.folder("multi30k"), data, benchmark.quick)
            benchmark.add(measured(benchmark, folder, files, seed))
    benchmark.finish(
        verdict(benchmark.rows),
        ["Not met means: smaller models of the same time do better, or none is as fast."],
    )


if __name__ == "__main__":
    main(run)
