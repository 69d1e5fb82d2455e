"""Persons, places, organisations: CoNLL-2003 (eng.train, eng.testa, eng.testb in the folder)."""

from __future__ import annotations

from pathlib import Path

from app import Files, run

PAGE = {
    "casing": True,
    "tasks": {"entities": {"kind": "ner", "scheme": "IOB1", "max_length": 128}},
    "routers": [{"kind": "mixture", "granularity": "token", "adapters": 4, "top": 2}],
    "train": {"epochs": 4.0, "freeze_embeddings": True, "dropout": 0.0},
}
TRIES = ["Angela Merkel met the board of Siemens in Munich.", "Rain stopped play at Lord's."]


def prepare(data: Path, out: Path) -> Files:
    """The files as they are."""
    names = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
    return {"entities": {split: str((data / name).resolve()) for split, name in names.items()}}


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
