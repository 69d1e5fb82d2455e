"""One frozen backbone answers six tasks in one pass: what that costs in time, quality and memory.

Contenders: one frozen MiniLM with a routing layer (experts weighed by input and task) and six
heads, trained on all tasks at once; the same with heads alone; both again reading a mix of all
layers, weighed by task; six full fine-tunings, a model a
task; six LoRA fine-tunings, an adapter a task. Time is that of one pass over texts of all tasks
that answers 1 to 6 of them, in turns with a pass of the plain backbone with one head, and with
passes of the first 1 to 6 of the fully fine-tuned models, one after the other. PEFT's Poly and
X-LoRA and `adapters`' Parallel are timed beside it (peers_of_tasks.py).
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import Benchmark, Row, gain, goal, main, spread
from frontier_claim import WORK, named
from peers_of_tasks import peers
from tasks_here import (
    MODEL,
    Call,
    best_rates,
    judged,
    run_of,
    seconds_of,
    side_by_side,
    six_tasks,
    whole_seeds,
)

from turnout.double.answers import padded
from turnout.double.passes import one_pass
from turnout.double.results import TasksResults
from turnout.double.run import TasksRun, open_tasks_run
from turnout.execute.batches import groups_by_length, lengths_of
from turnout.files import read_json
from turnout.measure.stats import ratio_interval
from turnout.measure.timing import interleaved
from turnout.train.data import listed
from turnout.train.host import locate

ROUTING = {
    "kind": "mixture",
    "reads": "both",
    "adapters": 8,
    "top": 2,
    "granularity": "token",
    "inner": 128,
}
JOINT: dict[str, dict[str, Any]] = {
    "routing layer": {"strategy": "router", "routers": [ROUTING]},
    "heads alone": {"strategy": "head", "routers": []},
    "routing layer, all layers": {
        "strategy": "router",
        "routers": [ROUTING],
        "layers": "mixed",
    },
    "heads alone, all layers": {"strategy": "head", "routers": [], "layers": "mixed"},
}
ALONE: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full", "freeze_embeddings": True},
    "lora": {"strategy": "lora", "rank": 8},
}
PAIRS = [
    (one, other)
    for one in ("routing layer", "routing layer, all layers")
    for other in (*ALONE, "heads alone")
]
PAIRS += [(f"{name}, all layers", name) for name in ("routing layer", "heads alone")]
PAIRS += [("routing layer, all layers", "heads alone, all layers")]
RATES = {"full": (1e-4, 3e-4, 1e-3), "lora": (3e-4, 1e-3, 3e-3)}
NEW = (1e-3, 3e-3, 1e-2)  # of heads and routing layers before a frozen backbone
TUNING = 400  # rows of each task; of tags, more: what does best on few rows diverges on all
TUNING_TAGS = 2500
SLACK = 0.05  # of a pass, that a task more may take


def settings(seed: int, quick: bool, rate: float) -> dict[str, Any]:
    """What all contenders share. Heads beside a backbone that learns do so ten times as fast."""
    return {
        "epochs": 1.0 if quick else 2.0,
        "dropout": 0.0,
        "seed": seed,
        "evaluate_every": 100_000,
        "learning_rate": rate,
        "precision": "fp32" if quick else "bf16",
        "sampling": "proportional",  # as often as a model of one task sees its rows
    }


def fields_of(name: str, seed: int, quick: bool, rate: float) -> tuple[Row, list[Row], Row]:
    """Of one contender's training; its routers; and what else its recipe says."""
    own = dict({**JOINT, **ALONE}[name])
    routers, more = own.pop("routers", []), {"layers": own.pop("layers", "last")}
    new = rate if name in JOINT else min(1e-2, 10 * rate)
    rates = {"head_learning_rate": new, "router_learning_rate": new}
    return {**settings(seed, quick, rate), **rates, **own}, routers, more


def rates_of(benchmark: Benchmark, tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each contender, by validation rows of seed 0: of all tasks at once, or
    of the one that it answers."""
    folder = WORK / named("many-tasks-tuning", 0, benchmark.quick)
    fewer = {
        task: {**config, "max_train": TUNING_TAGS if config["kind"] == "ner" else TUNING}
        for task, config in tasks.items()
    }
    answered = {keyed(name): (name, fewer) for name in JOINT}
    for name in ALONE:
        answered |= {keyed(name, task): (name, {task: fewer[task]}) for task in tasks}

    def call(key: str, rate: float) -> Call:
        name, these = answered[key]
        out = folder / f"{key.replace(' ', '-').replace(',', '')}-{rate:g}"
        return (run_of, out, these, *fields_of(name, 0, benchmark.quick, rate))

    rates = {key: RATES.get(name, NEW) for key, (name, _) in answered.items()}
    return best_rates(benchmark, rates, call)


def keyed(name: str, task: str | None = None) -> str:
    """What a contender's learning rate is known by."""
    return name if task is None else f"{name}, {task}"


def one_of(
    name: str, task: str, config: dict[str, Any], fields: Row, routers: list[Row], out: Path
) -> list[Row]:
    """A model of one task."""
    run = run_of(out, {task: config}, fields, routers)
    return rows_of(name, fields, run, judged(run))


def rows_of(name: str, fields: Row, run: TasksRun, found: TasksResults) -> list[Row]:
    """A row a task, and with several tasks a row a pass."""
    seed, rate = fields["seed"], fields["learning_rate"]
    shared: Row = {"contender": name, "seed": seed, "rate": rate}
    cost = {
        "training_seconds": seconds_of(run),
        "parameters": found.parameters,
        "backbone": found.parameters - found.added,
        "trained": read_json(run.path / "training.json")["trained_parameters"],
    }
    rows: list[Row] = [
        {
            **shared,
            "task": task.name,
            "metric": task.metric,
            "quality": task.quality,
            "low": task.low,
            "high": task.high,
            "use": task.use,
            **cost,
        }
        for task in found.tasks
    ]
    if len(found.tasks) > 1:
        rows += [
            {
                **shared,
                "tasks": each.tasks,
                "ratio": each.ratio,
                "ratio_low": each.low,
                "ratio_high": each.high,
                "seconds": each.seconds,
                "gflops": each.gflops,
                "plain_gflops": found.plain_gflops,
            }
            for each in found.passes
        ]
    return rows


def beside_separate(joint: TasksRun, alone: list[TasksRun], quick: bool) -> list[Row]:
    """Time of the joint pass by number of tasks, beside that of as many separate models."""
    model, tokenizer = joint.load(), joint.tokenizer()
    each = [run.load() for run in alone]
    texts = []
    for task in joint.tasks().values():
        raw = task.load()["test"].select(range(20 if quick else 50))
        texts += listed(task.encode(raw, tokenizer))
    groups = [
        padded([texts[i] for i in group], tokenizer)
        for group in groups_by_length(lengths_of(texts), 4096)
    ]
    arms = {}
    for count in range(1, len(each) + 1):
        arms[f"joint {count}"] = one_pass(model, model.tasks[:count], groups)
        passes = [one_pass(other, other.tasks, groups) for other in each[:count]]
        arms[f"separate {count}"] = lambda passes=passes: [run() for run in passes]
    seconds = interleaved(arms, 3 if quick else 7)
    rows: list[Row] = []
    for count in range(1, len(each) + 1):
        ratio = ratio_interval(seconds[f"joint {count}"], seconds[f"separate {count}"])
        found = {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append({"contender": "joint over separate", "tasks": count, **found})
    return rows


def others(joint: TasksRun, quick: bool) -> list[Row]:
    """Time of a pass of PEFT's and `adapters`' ways, by number of tasks."""
    texts = []
    for task in joint.tasks().values():
        raw = task.load()["test"].select(range(20 if quick else 50))
        texts += [" ".join(r["tokens"]) if "tokens" in r else r["text"] for r in raw]  # type: ignore[call-overload, index]
    texts.sort(key=len)
    parts = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    tokenizer, options = joint.tokenizer(), {"padding": True, "truncation": True, "max_length": 128}
    batches = [dict(tokenizer(part, return_tensors="pt", **options)) for part in parts]
    return peers(locate(MODEL), parts, batches, 3 if quick else 7)


def stored(rows: list[Row], name: str, seed: int) -> float:
    """Parameters on disk, in millions, that answer all tasks: one backbone, and what each model
    trained that is its own."""
    here = [row for row in rows if (row["contender"], row["seed"]) == (name, seed)]
    here = [row for row in here if "task" in row]
    if name in JOINT:
        return here[0]["parameters"] / 1e6
    frozen = here[0]["backbone"] if name == "lora" else here[0]["parameters"] - here[0]["trained"]
    return (frozen + sum(row["trained"] for row in here)) / 1e6


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Time by number of tasks; quality beside models of one task; parameters stored."""
    entries: dict[str, Row] = {}
    rows = [row for row in rows if "contender" in row]
    for count in sorted(
        {row["tasks"] for row in rows if row["contender"] == "joint over separate"}
    ):
        ratios = [
            row["ratio"]
            for row in rows
            if row["contender"] == "joint over separate" and row["tasks"] == count
        ]
        entry = goal(statistics.fmean(ratios), at_most=(1 + SLACK * count) / count)
        entry["over_seeds"] = spread(ratios)
        entries[f"a pass for {count} tasks over passes of {count} separate models"] = entry
    for name in ("PEFT Poly", "PEFT X-LoRA", "adapters Parallel"):
        for count in (1, 6):
            ratios = [
                row["ratio"]
                for row in rows
                if (row["contender"], row.get("tasks")) == (name, count)
            ]
            if ratios:
                entry = {"value": statistics.fmean(ratios), "goal": "a figure, no goal"}
                entries[f"{name}: {count} tasks over a plain pass"] = {**entry, "met": True}
        added = [r["added"] for r in rows if r["contender"] == name and "added" in r]
        if added:
            entry = {"value": added[0] / 1e6, "goal": "a figure, no goal", "met": True}
            entries[f"million parameters added for six tasks, {name}"] = entry
    for name in (*ALONE, *JOINT):
        seeds = whole_seeds(rows, {name})
        if seeds:
            entries[f"million parameters stored, {name}"] = {
                "value": stored(rows, name, seeds[0]),
                "goal": "a figure, no goal",
                "met": True,
            }
    for name in JOINT:
        timed = [row for row in rows if "ratio" in row and row["contender"] == name]
        for count in sorted({row["tasks"] for row in timed}):
            ratios = [row["ratio"] for row in timed if row["tasks"] == count]
            entry = goal(statistics.fmean(ratios), at_most=1 + SLACK * count)
            entry["over_seeds"] = spread(ratios)
            entries[f"{name}: a pass that answers {count} of the tasks over a plain one"] = entry
    judged_rows = [row for row in rows if "task" in row]
    for one, other in PAIRS:
        for task in dict.fromkeys(row["task"] for row in judged_rows):
            here = [row for row in judged_rows if row["task"] == task]
            gains = [
                _quality(here, one, task, seed) - _quality(here, other, task, seed)
                for seed in whole_seeds(here, {one, other})
            ]
            if gains:
                entries[f"{task}: {one} minus {other}"] = gain(gains)
    return entries


def _quality(rows: list[Row], contender: str, task: str, seed: int) -> float:
    return next(
        row["quality"]
        for row in rows
        if (row["contender"], row["task"], row["seed"]) == (contender, task, seed)
    )


def trained_only(*arguments: Any) -> list[Row]:
    """No row yet: of a run that is measured when the machine does nothing else."""
    run_of(*arguments)
    return []


def trained(benchmark: Benchmark, rates: dict[str, float]) -> None:
    """All models, side by side; those of one task are judged too."""
    calls: list[Call] = []
    for seed in benchmark.seeds:
        tasks = tasks_of(benchmark, seed)
        for name in JOINT:
            if benchmark.find(contender=name, seed=seed) is None:
                own = fields_of(name, seed, benchmark.quick, rates[keyed(name)])
                calls.append((trained_only, run_folder(benchmark, name, seed), tasks, *own))
        for name in ALONE:
            for task, config in tasks.items():
                if benchmark.find(contender=name, seed=seed, task=task) is None:
                    rate = rates[keyed(name, task)]
                    fields, routers, _ = fields_of(name, seed, benchmark.quick, rate)
                    out = folder_of(benchmark, seed) / f"{name}-{task}"
                    calls.append((one_of, name, task, config, fields, routers, out))
    side_by_side(benchmark, calls)


def measured(benchmark: Benchmark, rates: dict[str, float], seed: int) -> None:
    """What is timed, and so has the machine for itself."""
    tasks, folder = tasks_of(benchmark, seed), folder_of(benchmark, seed)
    for name in JOINT:
        if benchmark.find(contender=name, seed=seed) is None:
            own = fields_of(name, seed, benchmark.quick, rates[keyed(name)])
            run = run_of(run_folder(benchmark, name, seed), tasks, *own)
            benchmark.add(rows_of(name, own[0], run, judged(run)))
    if benchmark.find(contender="joint over separate", seed=seed) is None:
        joint = open_tasks_run(folder / "routing-layer")
        alone = [open_tasks_run(folder / f"full-{task}") for task in tasks]
        timed = beside_separate(joint, alone, benchmark.quick)
        benchmark.add({**row, "seed": seed} for row in timed)
    if benchmark.find(contender="PEFT Poly", seed=seed) is None:
        joint = open_tasks_run(folder / "routing-layer")
        benchmark.add({**row, "seed": seed} for row in others(joint, benchmark.quick))


def run_folder(benchmark: Benchmark, name: str, seed: int) -> Path:
    """Of a contender that answers all tasks."""
    return folder_of(benchmark, seed) / name.replace(" ", "-").replace(",", "")


def folder_of(benchmark: Benchmark, seed: int) -> Path:
    """Where the runs of a seed lie."""
    return WORK / named("many-tasks", seed, benchmark.quick)


def tasks_of(benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """The six, as a seed splits them."""
    folder = folder_of(benchmark, seed)
    files = folder.with_name(f"{folder.name}-data")
    return six_tasks(benchmark.folder, files, seed, benchmark.quick)


def run() -> None:
    benchmark = Benchmark("many_tasks", "six tasks in one pass of a frozen backbone", (0,))
    rates = rates_of(benchmark, tasks_of(benchmark, 0))
    trained(benchmark, rates)
    for seed in benchmark.seeds:
        measured(benchmark, rates, seed)
    benchmark.finish(
        verdict(benchmark.rows),
        [
            "Learning rates: the best of each contender on validation rows (seed 0, 400 rows a "
            "task, 2,500 sentences of tags); of models of one task, for each task by itself.",
            "Trainings ran side by side, a core each: their seconds are of one core.",
            "full: all but the embeddings, which are stored once.",
            "An entry on quality is met where the whole interval over seeds is above 0.",
        ],
    )


if __name__ == "__main__":
    main(run)
