"""Headlines of news: the title that belongs to a description; AG News (test.csv in the folder).

An encoder-decoder out of two pretrained encoders; the attention between the two is new, and so is
the step from the decoder's states to words. 6,000 news are few to learn to write from: for more
than a trial make the host of a larger model, or name one that can summarise already (model=FOLDER).
Needs: pip install 'turnout[text]'.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from app import MODEL, save_rows, split_by
from writer import Files, write

from turnout.train.new_pair import NewPair, new_pair

GATE = {"kind": "gate", "stack": "decoder", "site": "ffn", "granularity": "token"}
PAGE: dict[str, Any] = {
    "task": {"kind": "rewriting", "metric": "rouge", "max_length": 96, "max_target": 24},
    "routers": [GATE],
    "train": {"epochs": 6.0, "routed_epochs": 2.0, "batch_size": 32, "learning_rate": 3e-4},
    "measure": {"budgets": [0.75, 0.5], "time_examples": 200},
}
TRIES = [
    "Shares of the chip maker fell more than ten percent on Tuesday after it warned of low sales.",
    "The striker scored twice in Rome as his team won its third match in a row.",
]


def prepare(data: Path, out: Path) -> Files:
    """Descriptions and their titles."""
    with (data / "test.csv").open(encoding="utf-8", newline="") as file:
        pairs = {text.strip(): title.strip() for _, title, text in csv.reader(file)}
    splits = split_by([text for text, title in pairs.items() if text and title])
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for text, split in splits.items():
        rows[split].append({"text": text, "target": pairs[text]})
    return {name: save_rows(out / f"{name}.jsonl", each) for name, each in rows.items()}


def make_host(files: Files, out: Path) -> Path:
    """Encoder and decoder of the default host."""
    return new_pair(NewPair(encoder=MODEL), out)


if __name__ == "__main__":
    write(__doc__ or "", prepare, make_host, PAGE, TRIES)
