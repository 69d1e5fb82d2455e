"""Intents from tables like those of CLINC150: train.csv, val.csv, test.csv with text and intent.

What belongs to none of the intents (out of scope) is an intent like the others there, oos.
"""

from __future__ import annotations

from pathlib import Path

from app import Files, known_labels, run, save_rows

from turnout.errors import UserError
from turnout.tasks.table import read_table

NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
PAGE = {
    "tasks": {"intent": {"kind": "classification", "max_length": 48}},
    "routers": [{"kind": "mixture", "adapters": 4, "top": 2}],
    "train": {"epochs": 4.0, "freeze_embeddings": True, "dropout": 0.0},
}
TRIES = ["How do I get to the airport?", "Please freeze my account."]


def prepare(data: Path, out: Path) -> Files:
    """The tables, whatever their second column is called."""
    rows = {}
    for split, names in NAMES.items():
        path = next((p for p in (data / f"{name}.csv" for name in names) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{data} holds no {names[0]}.csv")
        columns = read_table(str(path)).columns
        label = next((n for n in ("intent", "label", "category") if n in columns), None)
        if label is None or "text" not in columns:
            raise UserError(f"{path}: needs the columns text and intent; it has {list(columns)}")
        pairs = zip(columns["text"], columns[label], strict=True)
        rows[split] = [{"text": text, "label": str(intent)} for text, intent in pairs]
    rows = known_labels(rows, "label")
    return {"intent": {split: save_rows(out / f"{split}.jsonl", rows[split]) for split in NAMES}}


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
