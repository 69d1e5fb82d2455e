"""Sentiment of financial news: Financial PhraseBank (Sentences_50Agree.txt in the folder)."""

from __future__ import annotations

from pathlib import Path

from app import Files, run, save_rows, split_by

PAGE = {
    "tasks": {"sentiment": {"kind": "classification", "max_length": 64}},
    "routers": [{"kind": "mixture", "adapters": 4, "top": 2}],
    "train": {"epochs": 3.0, "freeze_embeddings": True, "dropout": 0.0, "learning_rate": 2e-4},
}
TRIES = ["Operating profit rose to EUR 13.1 mn from EUR 8.7 mn.", "The company cut 200 jobs."]


def prepare(data: Path, out: Path) -> Files:
    """Sentences and what an investor makes of them."""
    lines = (data / "Sentences_50Agree.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("@", 1) for line in lines if line]
    splits = split_by([text for text, _ in pairs])
    return {
        "sentiment": {
            name: save_rows(
                out / f"{name}.jsonl",
                [{"text": text, "label": label} for text, label in pairs if splits[text] == name],
            )
            for name in ("train", "validation", "test")
        }
    }


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
