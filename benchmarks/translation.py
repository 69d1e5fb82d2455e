"""Translation English to German from scratch: a small encoder-decoder, dense and routed.

Multi30k (29,000 captions), tokenizer and model of our own: byte pairs, a BART of 3 + 3 layers. The
dense model is trained first; the routed ones start from it, with the same further steps as a dense
model that is only trained on, which is the fair comparison. BLEU is sacreBLEU's on
test_2016_flickr, greedy; time is that of writing all of the answers, in turns.
"""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

from common import Benchmark, Row, goal, main
from frontier_claim import WORK, named

from turnout.files import write_text
from turnout.measure.run import measure
from turnout.recipe import Recipe
from turnout.run import Run
from turnout.train.new_host import NewHost, new_host
from turnout.train.pipeline import train

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


def host_of(files: dict[str, str], out: Path, seed: int) -> Path:
    """A fresh host and its tokenizer."""
    if out.is_dir():
        return out
    page = {
        "family": "bart",
        "config": SIZES,
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
    host: Path, files: dict[str, str], routers: list[dict[str, Any]], seed: int, quick: bool
) -> Recipe:
    """Of one routed model."""
    task = {"kind": "rewriting", "max_length": 64, "max_target": 64, "seed": seed, **files}
    return Recipe.model_validate(
        {
            "model": str(host),
            "task": task,
            "routers": routers,
            "train": {
                "epochs": 1.0 if quick else 10.0,
                "routed_epochs": 1.0 if quick else 3.0,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "routed_learning_rate": 3e-4,
                "dropout": 0.1,
                "evaluate_every": 100_000,
                "seed": seed,
            },
            "measure": {"budgets": [0.75, 0.5], "repeats": 3, "time_examples": 200},
        }
    )


def rows_of(run: Run, name: str, seed: int) -> list[Row]:
    """A row an arm."""
    results = measure(run, run.recipe.measure, progress=False)
    return [
        {
            "router": name,
            "seed": seed,
            "arm": arm.name,
            "family": arm.family,
            "bleu": 100 * arm.quality.value,
            "low": 100 * arm.quality.low,
            "high": 100 * arm.quality.high,
            "signature": arm.report["signature"],
            "speedup": arm.speedup.value,
            "share": arm.share,
            "gflops": arm.flops_per_example / 1e9,
        }
        for arm in results.arms
    ]


def verdict(rows: list[Row]) -> dict[str, Row]:
    """BLEU of the dense model, and what each routed arm keeps of it at which speed."""
    entries: dict[str, Row] = {}
    for name in dict.fromkeys(row["router"] for row in rows):
        for arm in dict.fromkeys(row["arm"] for row in rows if row["router"] == name):
            here = [row for row in rows if (row["router"], row["arm"]) == (name, arm)]
            dense = {
                row["seed"]: row["bleu"]
                for row in rows
                if (row["router"], row["family"]) == (name, "dense")
            }
            lost = [dense[row["seed"]] - row["bleu"] for row in here]
            entry = goal(statistics.fmean(lost), at_most=1.0)
            entry["bleu"] = statistics.fmean(row["bleu"] for row in here)
            entry["speedup"] = statistics.fmean(row["speedup"] for row in here)
            entries[f"{name}, {arm}: BLEU lost to dense"] = entry
    return entries


def run() -> None:
    benchmark = Benchmark("translation", "translation from scratch, dense and routed", (0,))
    for seed in benchmark.seeds:
        folder = WORK / named("translation", seed, benchmark.quick)
        files = files_of(
            benchmark.folder("multi30k"), folder.with_name(f"{folder.name}-data"), benchmark.quick
        )
        host = host_of(files, folder / "host", seed)
        dense: Path | None = None
        for name, routers in ROUTERS.items():
            if benchmark.find(router=name, seed=seed) is None:
                out = folder / name.replace(" ", "-")
                made = recipe(host, files, routers, seed, benchmark.quick)
                trained = train(made, out, dense=dense, progress=False)
                benchmark.add(rows_of(trained, name, seed))
            dense = dense or folder / name.replace(" ", "-") / "dense"
    benchmark.finish(verdict(benchmark.rows))


if __name__ == "__main__":
    main(run)
