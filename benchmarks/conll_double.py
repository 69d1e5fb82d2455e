"""CoNLL-2003 with double routing: head(router(backbone(x))) beside head(backbone(x)).

MiniLM, fully fine-tuned (all but its embeddings), three seeds: a head alone; a routing layer of
experts before it, weighed by each token; one routing layer that every token takes, of the same
size as one expert and of the size of all. Then what helps further: how words are written (this
host lowers all letters), and another backbone, Gemma-3-270m with attention to both sides and LoRA.
The report is that of scikit-learn over the tags of all 46,435 words of the test file, beside the
table that the idea was described with (of a larger, cased host).
"""

from __future__ import annotations

import shutil
import statistics
from typing import Any

from common import Benchmark, Row, gain, goal, main, spread
from datasets_here import conll2003
from frontier_claim import WORK, named
from gemma import gemma_folder
from tasks_here import Call, best_rates, judged, run_of, seconds_of, side_by_side, whole_seeds

from turnout.files import atomic_dir, read_json, write_json

DESCRIBED = {
    "micro avg": 0.973,
    "macro avg": 0.909,
    "O": 0.994,
    "B-LOC": 0.916,
    "I-LOC": 0.850,
    "B-MISC": 0.865,
    "I-MISC": 0.809,
    "B-ORG": 0.906,
    "I-ORG": 0.902,
    "B-PER": 0.960,
    "I-PER": 0.982,
}
LAYER = {"kind": "mixture", "granularity": "token"}
CONTENDERS: dict[str, dict[str, Any]] = {
    "single layer": {},
    "double": {"routers": [{**LAYER, "adapters": 4, "top": 2}]},
    "one layer of an expert's size": {"routers": [{**LAYER, "adapters": 1}]},
    "one layer of all experts' size": {"routers": [{**LAYER, "adapters": 1, "inner": 1536}]},
    "single layer, cased": {"casing": True},
    "double, cased": {"casing": True, "routers": [{**LAYER, "adapters": 4, "top": 2}]},
}
# The larger backbone, of the first seed alone: most of an hour a training.
LARGE: dict[str, dict[str, Any]] = {
    "Gemma-3-270m, single layer": {},
    "Gemma-3-270m, double": {"routers": [{**LAYER, "adapters": 4, "top": 2}]},
}
PAIRS = (
    ("double", "single layer"),
    ("double", "one layer of an expert's size"),
    ("double", "one layer of all experts' size"),
    ("double, cased", "single layer, cased"),
    ("single layer, cased", "single layer"),
    ("Gemma-3-270m, double", "Gemma-3-270m, single layer"),
)
LORA = {"strategy": "lora", "rank": 16, "epochs": 2.0}
LARGE_RATE = 5e-4
RATES = (1e-4, 3e-4, 1e-3)  # of the backbone; what is new learns three times as fast
TUNING = 3500  # sentences, a quarter


def settings(seed: int, quick: bool, rate: float = 3e-4) -> dict[str, Any]:
    """What all contenders share."""
    return {
        "epochs": 1.0 if quick else 4.0,
        "dropout": 0.0,
        "precision": "fp32" if quick else "bf16",
        "seed": seed,
        "strategy": "full",
        "freeze_embeddings": True,
        "learning_rate": rate,
        "router_learning_rate": 3 * rate,
        "head_learning_rate": 3 * rate,
        "evaluate_every": 100_000,
    }


def both_sides() -> str:
    """Gemma's folder, but for one switch of its config: tokens attend to both sides."""
    source = gemma_folder()
    folder = source.with_name(f"{source.name}-both-sides")
    if not folder.is_dir():
        with atomic_dir(folder) as temp:
            shutil.copytree(source, temp, dirs_exist_ok=True)
            config = read_json(temp / "config.json")
            write_json(temp / "config.json", {**config, "use_bidirectional_attention": True})
    return str(folder)


def rates_of(benchmark: Benchmark) -> dict[str, float]:
    """The learning rate of each contender, by the validation sentences of seed 0."""
    folder, quick = WORK / named("conll-double-tuning", 0, benchmark.quick), benchmark.quick
    task = task_of(benchmark, 0)
    fewer = {"entities": {**task, "max_train": min(TUNING, task.get("max_train", TUNING))}}

    def trained(name: str, rate: float) -> Call:
        out = folder / f"{folder_name(name)}-{rate:g}"
        return (run_of, out, fewer, settings(0, quick, rate), (), CONTENDERS[name])

    return best_rates(benchmark, dict.fromkeys(CONTENDERS, RATES), trained)


def folder_name(name: str) -> str:
    """Of a contender's run."""
    return name.replace(" ", "-").replace(",", "").replace("'", "")


def rows_of(name: str, task: dict[str, Any], seed: int, quick: bool, rate: float) -> list[Row]:
    """One contender of one seed."""
    out = WORK / named("conll-double", seed, quick) / folder_name(name)
    fields, more = settings(seed, quick, rate), {**CONTENDERS, **LARGE}[name]
    if name in LARGE:
        fields, more = {**fields, **LORA, "learning_rate": rate}, {**more, "model": both_sides()}
    run = run_of(out, {"entities": task}, fields, (), more)
    (found,) = judged(run).tasks
    return [
        {
            "contender": name,
            "seed": seed,
            "rate": rate,
            "f1": found.quality,
            "tokens": {key: _f1(value) for key, value in found.report["tokens"].items()},
            "words": int(found.report["tokens"]["macro avg"]["support"]),
            "report": found.report,
            "use": found.use,
            "training_seconds": seconds_of(run),
        }
    ]


def _f1(value: Any) -> float:
    return float(value["f1-score"] if isinstance(value, dict) else value)


def micro(row: Row) -> float:
    """The share of words with the right tag, as the table calls its micro average."""
    tokens = row["tokens"]
    return float(tokens.get("micro avg", tokens.get("accuracy", 0.0)))


def verdict(rows: list[Row]) -> dict[str, Row]:
    """How far the described table is, and whether the routing layer gains."""
    entries: dict[str, Row] = {}
    rows = [row for row in rows if "contender" in row]
    whole = whole_seeds(rows, CONTENDERS)

    def values(name: str, what: Any) -> list[float]:
        seeds = whole_seeds(rows, {name}) if name in LARGE else whole
        return [
            what(row)
            for seed in seeds
            for row in rows
            if (row["contender"], row["seed"]) == (name, seed)
        ]

    for name in (*CONTENDERS, *LARGE):
        for what, of in (("micro avg", micro), ("macro avg", macro)):
            each = values(name, of)
            if each:
                entry = goal(statistics.fmean(each), at_least=DESCRIBED[what])
                entries[f"{what} of {name}"] = {**entry, "over_seeds": spread(each)}
                if of is macro:
                    tags = {
                        tag: statistics.fmean(values(name, lambda row, t=tag: row["tokens"][t]))
                        for tag in DESCRIBED
                        if not tag.endswith("avg")
                    }
                    entries[f"{what} of {name}"]["tags"] = tags
    for what, of in (("micro avg", micro), ("macro avg", macro), ("entity F1", lambda r: r["f1"])):
        for one, other in PAIRS:
            pairs = zip(values(one, of), values(other, of), strict=True)
            gains = [first - second for first, second in pairs]
            if gains:
                entries[f"{what}: {one} minus {other}"] = gain(gains)
    return entries


def macro(row: Row) -> float:
    """The mean of the tags' F1."""
    return float(row["tokens"]["macro avg"])


def task_of(benchmark: Benchmark, seed: int) -> dict[str, Any]:
    """The sentences of a seed."""
    folder = WORK / named("conll-double", seed, benchmark.quick)
    task = conll2003(benchmark.folder("conll2003"), folder, seed, benchmark.quick)
    return {**task, "max_length": 256}  # no word of the test file is cut off


def run() -> None:
    benchmark = Benchmark("conll_double", "does a routing layer help on CoNLL-2003", (0, 1, 2))
    rates = rates_of(benchmark)
    wanted = [(name, seed) for seed in benchmark.seeds for name in CONTENDERS]
    if 0 in benchmark.seeds and not benchmark.quick:  # last: an hour each
        both_sides()  # made once, before two processes want it
        wanted += [(name, 0) for name in LARGE]
    tasks = {seed: task_of(benchmark, seed) for seed in benchmark.seeds}
    side_by_side(
        benchmark,
        [
            (rows_of, name, tasks[seed], seed, benchmark.quick, rates.get(name, LARGE_RATE))
            for name, seed in wanted
            if benchmark.find(contender=name, seed=seed) is None
        ],
    )
    benchmark.finish(
        verdict(benchmark.rows),
        [
            f"The described table: {', '.join(f'{k} {v:.3f}' for k, v in DESCRIBED.items())}.",
            "Learning rates: the best of each on validation sentences (seed 0, a quarter of the "
            "training sentences); Gemma's is not tuned.",
            "Trainings ran side by side, a core each: their seconds are of one core.",
        ],
    )


if __name__ == "__main__":
    main(run)
