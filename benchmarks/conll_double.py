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
from pathlib import Path
from typing import Any

from common import Benchmark, Row, goal, main, spread
from datasets_here import conll2003
from frontier_claim import WORK, named
from gemma import gemma_folder
from tasks_here import MODEL, judged, run_of, seconds_of

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
# The larger backbone, of the first seed alone: an hour a training on two cores.
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
LORA = {"strategy": "lora", "rank": 16, "learning_rate": 5e-4, "epochs": 3.0}


def settings(seed: int, quick: bool) -> dict[str, Any]:
    """What all contenders share."""
    return {
        "epochs": 1.0 if quick else 4.0,
        "dropout": 0.0,
        "precision": "fp32" if quick else "bf16",
        "seed": seed,
        "strategy": "full",
        "freeze_embeddings": True,
        "learning_rate": 3e-4,
        "router_learning_rate": 1e-3,
        "head_learning_rate": 1e-3,
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


def row_of(name: str, out: Path, task: dict[str, Any], seed: int, quick: bool) -> Row:
    """One contender of one seed."""
    own = {"routers": [], **CONTENDERS.get(name, LARGE.get(name, {}))}
    model, fields = MODEL, settings(seed, quick)
    if name in LARGE:
        model, fields = both_sides(), {**fields, **LORA}
    run = run_of(out, {"entities": task}, fields, model=model, **own)
    (found,) = judged(run).tasks
    return {
        "contender": name,
        "seed": seed,
        "f1": found.quality,
        "tokens": {key: _f1(value) for key, value in found.report["tokens"].items()},
        "words": int(found.report["tokens"]["macro avg"]["support"]),
        "use": found.use,
        "training_seconds": seconds_of(run),
    }


def _f1(value: Any) -> float:
    return float(value["f1-score"] if isinstance(value, dict) else value)


def micro(row: Row) -> float:
    """The share of words with the right tag, as the table calls its micro average."""
    tokens = row["tokens"]
    return float(tokens.get("micro avg", tokens.get("accuracy", 0.0)))


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Does the routing layer gain, and how far is the described table."""
    entries: dict[str, Row] = {}
    seeds = sorted({row["seed"] for row in rows})

    def values(name: str, what: Any) -> list[float]:
        return [
            what(row)
            for seed in seeds
            for row in rows
            if (row["contender"], row["seed"]) == (name, seed)
        ]

    for name in dict.fromkeys(row["contender"] for row in rows):
        entry = goal(statistics.fmean(values(name, micro)), at_least=DESCRIBED["micro avg"])
        each = values(name, micro)
        entry["over_seeds"] = spread(each)
        entries[f"micro average of {name}"] = entry
    known = {row["contender"] for row in rows}
    for what, against in (
        ("micro average", micro),
        ("macro F1", lambda row: row["tokens"]["macro avg"]),
        ("entity F1", lambda row: row["f1"]),
    ):
        for one, other in PAIRS:
            if not {one, other} <= known:
                continue
            pairs = zip(values(one, against), values(other, against), strict=True)
            gains = [first - second for first, second in pairs]
            entry = goal(statistics.fmean(gains), at_least=0)
            entry["over_seeds"] = spread(gains)
            entries[f"{what}: {one} minus {other}"] = entry
    return entries


def run() -> None:
    benchmark = Benchmark("conll_double", "does a routing layer help on CoNLL-2003", (0, 1, 2))
    for seed in benchmark.seeds:
        folder = WORK / named("conll-double", seed, benchmark.quick)
        task = conll2003(benchmark.folder("conll2003"), folder, seed, benchmark.quick)
        task["max_length"] = 256  # no word of the test file is cut off
        large = LARGE if seed == 0 and not benchmark.quick else {}
        for name in (*CONTENDERS, *large):
            if benchmark.find(contender=name, seed=seed) is None:
                out = folder / name.replace(" ", "-").replace(",", "").replace("'", "")
                benchmark.add([row_of(name, out, task, seed, benchmark.quick)])
    benchmark.finish(
        verdict(benchmark.rows),
        [f"The described table: {', '.join(f'{k} {v:.3f}' for k, v in DESCRIBED.items())}."],
    )


if __name__ == "__main__":
    main(run)
