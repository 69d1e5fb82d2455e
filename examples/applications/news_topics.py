"""Topics of news: AG News (test.csv and train_slice_10k_description_only.tsv in the folder)."""

from __future__ import annotations

import csv
from pathlib import Path

from app import Files, run, save_rows

TOPICS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
PAGE = {
    "tasks": {"topic": {"kind": "classification", "max_length": 64, "validation_share": 0.1}},
    "routers": [{"kind": "mixture", "adapters": 4, "top": 2}],
    "train": {"epochs": 2.0, "freeze_embeddings": True, "dropout": 0.0, "learning_rate": 2e-4},
}
TRIES = ["Shares of the chip maker fell after its results.", "The striker scored twice in Rome."]


def prepare(data: Path, out: Path) -> Files:
    """Descriptions and their topics."""
    plain = {name.lower().replace("/", ""): name for name in TOPICS.values()}
    lines = (data / "train_slice_10k_description_only.tsv").read_text(encoding="utf-8")
    pairs = [line.rsplit("\t", 1) for line in lines.splitlines() if line]
    with (data / "test.csv").open(encoding="utf-8", newline="") as file:
        test = [{"text": text, "label": TOPICS[label]} for label, _, text in csv.reader(file)]
    judging = {row["text"] for row in test}  # a few stand in both files
    train = [{"text": t, "label": plain[_letters(y)]} for t, y in pairs if t not in judging]
    files = {"train": save_rows(out / "train.jsonl", train)}
    return {"topic": {**files, "test": save_rows(out / "test.jsonl", test)}}


def _letters(label: str) -> str:
    return "".join(c for c in label.lower() if c.isalpha())


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
