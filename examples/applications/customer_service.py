"""Customer service: what is wanted, with which details, and what to answer, in one pass.

Schema-guided dialogues (the *_dialogues_*.json files in the folder). Three tasks on one backbone:
the intent of what a customer says, the slots in it, and the best of the replies ever given.
For tables of texts and intents there is intents.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app import Files, known_labels, run, save_rows, split_by

from turnout.tasks.ner_data import cut_words

SPLITS = ("train", "validation", "test")
PAGE = {
    "tasks": {
        "intent": {"kind": "classification", "max_length": 64},
        "slots": {"kind": "ner", "max_length": 64},
        "reply": {"kind": "ranking", "max_length": 64},
    },
    "routers": [{"kind": "mixture", "reads": "both", "adapters": 6, "top": 2}],
    "train": {"epochs": 4.0, "freeze_embeddings": True, "dropout": 0.0},
}
TRIES = ["I want to book a table for two in Oakland tonight.", "Find me a cheap hotel in Paris."]


def prepare(data: Path, out: Path) -> Files:
    """Turns of the customer; dialogues are split whole."""
    dialogues = [
        each
        for path in sorted(data.glob("*_dialogues_*.json"))
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]
    if not dialogues:
        raise FileNotFoundError(f"{data} holds no *_dialogues_*.json")
    splits = split_by([each["dialogue_id"] for each in dialogues])
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {
        task: {split: [] for split in SPLITS} for task in PAGE["tasks"]
    }
    for dialogue in dialogues:
        turns, split = dialogue["turns"], splits[dialogue["dialogue_id"]]
        for turn, reply in zip(turns, [*turns[1:], None], strict=True):
            if turn["speaker"] != "USER":
                continue
            text, frames = turn["utterance"], turn["frames"]
            intents = [frame["state"]["active_intent"] for frame in frames]
            if (intent := next((each for each in intents if each != "NONE"), None)) is not None:
                rows["intent"][split].append({"text": text, "label": intent})
            tokens, tags = tagged(text, [slot for frame in frames for slot in frame["slots"]])
            rows["slots"][split].append({"tokens": tokens, "tags": tags})
            if reply is not None:
                rows["reply"][split].append({"text": text, "answer": reply["utterance"]})
    rows["intent"] = known_labels(rows["intent"], "label")
    rows["slots"] = known_labels(rows["slots"], "tags")
    return {
        task: {split: save_rows(out / f"{task}-{split}.jsonl", each[split]) for split in SPLITS}
        for task, each in rows.items()
    }


def tagged(text: str, slots: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Words and their BIO tags, from the places of slots in a text."""
    words, tags, at = cut_words(text), [], 0
    for word in words:
        begin = text.index(word, at)
        at = begin + len(word)
        inside = [s for s in slots if s["start"] < at and s["exclusive_end"] > begin]
        first = inside and begin <= inside[0]["start"]
        tags.append(f"{'B' if first else 'I'}-{inside[0]['slot']}" if inside else "O")
    return words, tags


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
