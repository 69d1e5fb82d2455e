"""The public data sets that benchmarks read, written out as the files a recipe names.

Where to get each is in benchmarks/README.md. Nothing of them is kept in the project.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from turnout.files import write_text

AG_LABELS = ("World", "Sports", "Business", "Sci/Tech")
VALIDATION = 1000
Pair = tuple[str, str]


def ag_news(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Topics: 10,001 descriptions to train on, 7,600 to test (title left out on both sides)."""
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        test = [(text, AG_LABELS[int(label) - 1]) for label, _, text in csv.reader(file)]
    lines = (folder / "train_slice_10k_description_only.tsv").read_text(encoding="utf-8")
    named = {_plain(name): name for name in AG_LABELS}
    rows = [line.rsplit("\t", 1) for line in lines.splitlines() if line]
    train = [(text, named[_plain(label)]) for text, label in rows]
    return _write(train, test, out, seed, quick, max_length=64)


def sst2(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Sentiment of sentences: 6,920 to train on, 1,821 to test. Validation is cut from train; the
    data set's own development split is left alone."""

    def read(name: str) -> list[Pair]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[1:]
        return [(text, label) for text, label in (line.rsplit("\t", 1) for line in lines)]

    return _write(read("train.tsv"), read("test.tsv"), out, seed, quick, max_length=64)


def trec6(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Kinds of questions: 5,452 to train on, 500 to test; 6 classes."""

    def read(name: str) -> list[Pair]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[1:]
        rows = [line.split("\t") for line in lines if line]
        return [(text, coarse) for coarse, _, text in rows]

    return _write(read("train.tsv"), read("test.tsv"), out, seed, quick, max_length=48)


def conll2003(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Named entities, the original files (IOB1); testa is validation, testb is test."""
    names = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
    task: dict[str, Any] = {"kind": "ner", "scheme": "IOB1", "max_length": 128, "seed": seed}
    task.update({split: str((folder / name).resolve()) for split, name in names.items()})
    if quick:
        task["max_train"] = 1500
    return task


def financial_phrasebank(folder: Path, out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Sentiment of financial news: 4,846 sentences on which half of the judges agree. There is no
    official split: a sixth, drawn by a seed of its own, is the test."""
    lines = (folder / "Sentences_50Agree.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.rsplit("@", 1) for line in lines if line)
    rows = list(found.items())
    order = np.random.default_rng(0).permutation(len(rows))
    cut = len(rows) // 6
    test, train = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    return _write(train, test, out, seed, quick, max_length=64)


MIXTURE = {
    "ag_news": ag_news,
    "sst2": sst2,
    "trec6": trec6,
    "financial_phrasebank": financial_phrasebank,
}


def mixture(data: Callable[[str], Path], out: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Four data sets in one, their labels side by side as ``trec6:LOC``; at most 2,500 texts of
    each to train on and 800 to test. data: gives the folder of a data set."""
    rows: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    most = {"train": 600 if quick else 2500, "validation": 200, "test": 200 if quick else 800}
    for name, read in MIXTURE.items():
        task = read(data(name), out.with_name(f"{out.name}-{name}"), seed, False)
        for split, found in rows.items():
            lines = Path(task[split]).read_text(encoding="utf-8").splitlines()
            each = [json.loads(line) for line in lines]
            order = np.random.default_rng(seed if split != "test" else 0).permutation(len(each))
            found += [(each[i]["text"], f"{name}:{each[i]['label']}") for i in order[: most[split]]]
    return _files(rows, out, seed, max_length=64)


def _plain(label: str) -> str:
    return "".join(c for c in label.lower() if c.isalpha())


def _write(
    train: list[Pair], test: list[Pair], out: Path, seed: int, quick: bool, max_length: int
) -> dict[str, Any]:
    """Files with a split by seed, and the task of a recipe that reads them."""
    judging = {text for text, _ in test}  # a few rows of TREC-6 and SST-2 stand in both files
    train = [pair for pair in dict.fromkeys(train) if pair[0] not in judging]
    order = np.random.default_rng(seed).permutation(len(train))
    parts = {"validation": [train[i] for i in order[:VALIDATION]], "test": test}
    parts["train"] = [train[i] for i in order[VALIDATION:]]
    if quick:
        parts["train"] = parts["train"][:1200]
        parts["validation"] = parts["validation"][:300]
        parts["test"] = test[:: max(1, len(test) // 400)]
    return _files(parts, out, seed, max_length)


def _files(parts: dict[str, list[Pair]], out: Path, seed: int, max_length: int) -> dict[str, Any]:
    """A file a split, and the task of a recipe that reads them."""
    out.mkdir(parents=True, exist_ok=True)
    task: dict[str, Any] = {"kind": "classification", "max_length": max_length, "seed": seed}
    for split, rows in parts.items():
        path = out / f"{split}.jsonl"
        write_text(path, _jsonl(rows))
        task[split] = str(path.resolve())
    return task


def jsonl_pairs(path: Path, rows: Iterable[tuple[Pair, str]]) -> None:
    """Pairs of texts and their label, as ``text``, ``other`` and ``label``."""
    lines = [
        json.dumps({"text": one, "other": two, "label": label}, ensure_ascii=False)
        for (one, two), label in rows
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _jsonl(rows: Iterable[Pair]) -> str:
    return "".join(
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for text, label in rows
    )
