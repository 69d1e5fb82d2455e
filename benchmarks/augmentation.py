"""Do written examples help: TREC-6 at 100 and 500 labelled questions, with and without more.

Gemma-3-270m goes on with lists of questions of one label; what was there already, and what a cheap
classifier of the originals takes for another label, is left out. Written by plain sampling with a
temperature, and with noise on the feed-forward networks beside it (its size measured, not trained).
Baselines: the labelled questions alone, and the same number of copies with words left out. A MiniLM
is fine-tuned on each set, with as many steps in all arms, and judged on the 500 test questions.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from common import Benchmark, Row, gain, main, spread
from datasets_here import trec6
from frontier_claim import WORK, named
from gemma import gemma
from tasks_here import Call, judged, run_of, side_by_side
from untrained_noise import add_noise

from turnout.files import read_json, write_json, write_text
from turnout.generation import augment as made
from turnout.generation.judging import plain_check
from turnout.generation.settings import WriteSettings
from turnout.generation.writer import Writer

SIZES = (100, 500)
PER_EXAMPLE = {100: 3, 500: 1}
ARMS = ("originals", "word dropout", "temperature", "noise")
WORDS = {
    "DESC": "description",
    "ENTY": "thing",
    "ABBR": "abbreviation",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}
TEMPLATE = "Question about a {label}: {text}"
SETTINGS = WriteSettings(max_new_tokens=28, temperature=0.9, top_k=0, stop=("\n",))
NOISE = {"kind": "ffn", "start": 0.3, "per": "sequence", "mean": False}
STEPS = 160  # of 32 rows


def writer(arm: str) -> Writer:
    """The language model, with noise for that arm."""
    model, tokenizer = gemma(torch.bfloat16)
    if arm == "noise":
        add_noise(model, tokenizer, NOISE)
    return Writer(model, tokenizer)


def written(
    rows: Sequence[made.Row], arm: str, size: int, seed: int, cache: Path
) -> tuple[list[made.Row], dict[str, int]]:
    """New rows of an arm, and what became of all that was written. cache: where they are kept."""
    if arm == "originals":
        return [], {}
    if arm == "word dropout":
        rng = np.random.default_rng(seed)
        copies = [row for row in rows for _ in range(PER_EXAMPLE[size])]
        return [made.Row(made.word_dropout(r.text, 0.15, rng), r.label) for r in copies], {}
    if not cache.is_file():
        named_rows = [made.Row(row.text, WORDS[row.label]) for row in rows]
        settings = made.AugmentSettings(
            per_example=PER_EXAMPLE[size], template=TEMPLATE, seed=seed, threshold=0.3
        )
        pen = writer(arm)

        def write(prompts: Sequence[str]) -> list[str]:
            found = pen.write(list(prompts), SETTINGS.but(seed=seed), batch=32)
            return [each.text for each in found]

        found = made.augment(named_rows, write, settings, plain_check(named_rows))
        labels = {word: label for label, word in WORDS.items()}
        texts = [[row.text, labels[row.label]] for row in found.rows]
        write_json(cache, {"rows": texts, "report": found.report.facts()})
    page = read_json(cache)
    return [made.Row(text, label) for text, label in page["rows"]], page["report"]


def rows_of(
    arm: str, size: int, seed: int, task: dict[str, Any], counts: dict[str, int], out: Path
) -> list[Row]:
    """Train on one set and judge."""
    lines = Path(task["train"]).read_text(encoding="utf-8").splitlines()
    fields = {
        "strategy": "full",
        "freeze_embeddings": True,
        "epochs": 32 * STEPS / len(lines),
        "learning_rate": 3e-4,
        "head_learning_rate": 3e-3,
        "dropout": 0.0,
        "precision": "bf16",
        "seed": seed,
        "evaluate_every": 100_000,
    }
    quality = {"measure": {"repeats": 2, "time_examples": 32}}
    run = run_of(out, {"trec6": task}, fields, (), quality)
    (found,) = judged(run).tasks
    rmtree(run.path)
    row: Row = {"arm": arm, "size": size, "seed": seed, "rows": len(lines)}
    return [{**row, "quality": found.quality, "low": found.low, "high": found.high, **counts}]


def call_of(benchmark: Benchmark, arm: str, size: int, seed: int) -> Call:
    """One arm's training, on a file that is written now."""
    work = WORK / named("augmentation", seed, benchmark.quick)
    task = trec6(benchmark.folder("trec6"), work.with_name(f"{work.name}-data"), seed, False)
    lines = Path(task["train"]).read_text(encoding="utf-8").splitlines()[:size]
    rows = [made.Row(each["text"], each["label"]) for each in map(json.loads, lines)]
    stem = f"{arm.replace(' ', '-')}-{size}"
    work.mkdir(parents=True, exist_ok=True)
    print(f"== {stem}, seed {seed}", flush=True)
    new, counts = written(rows, arm, size, seed, work / f"{stem}.json")
    page = [json.dumps({"text": row.text, "label": row.label}) for row in [*rows, *new]]
    file = work / f"{stem}.jsonl"
    write_text(file, "".join(f"{line}\n" for line in page))
    full = {**task, "train": str(file.resolve())}
    return (rows_of, arm, size, seed, full, counts, work / stem)


def verdict(rows: list[Row]) -> dict[str, Row]:
    """What each way of making more rows gains over the originals, and over its baselines."""
    entries: dict[str, Row] = {}
    quality = {(row["arm"], row["size"], row["seed"]): row["quality"] for row in rows}
    for size in SIZES:
        for arm in ARMS:
            each = [q for (name, of, _), q in quality.items() if (name, of) == (arm, size)]
            if each:
                entry: Row = {"value": statistics.fmean(each), "goal": "a figure, no goal"}
                entries[f"{size} questions, {arm}: accuracy"] = {
                    **entry,
                    "met": True,
                    "over_seeds": spread(each),
                }
        pairs = [("temperature", "originals"), ("noise", "originals")]
        pairs += [("temperature", "word dropout"), ("noise", "temperature")]
        for one, other in pairs:
            gains = [
                quality[(one, size, seed)] - quality[(other, size, seed)]
                for (name, of, seed) in quality
                if (name, of) == (one, size) and (other, size, seed) in quality
            ]
            if gains:
                entries[f"{size} questions: {one} minus {other}"] = gain(gains)
    return entries


def run() -> None:
    benchmark = Benchmark("augmentation", "do written examples help, TREC-6", (0, 1, 2))
    arms = ARMS[:2] if benchmark.quick else ARMS
    for seed in benchmark.seeds:
        missing = [
            (arm, size)
            for size in (SIZES[:1] if benchmark.quick else SIZES)
            for arm in arms
            if benchmark.find(arm=arm, size=size, seed=seed) is None
        ]
        side_by_side(benchmark, [call_of(benchmark, arm, size, seed) for arm, size in missing])
    benchmark.finish(
        verdict(benchmark.rows),
        [
            "Met: the whole interval over seeds is above 0; entries that are not decided say so.",
            f"All arms take {STEPS} steps of 32 rows; nothing was tuned.",
        ],
    )


if __name__ == "__main__":
    main(run)
