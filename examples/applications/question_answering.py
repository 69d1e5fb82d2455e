"""Answers that stand in a text, in English and Chinese: XQuAD (xquad.en.json, xquad.zh.json).

Some 900 questions a language to learn from are few, and the default host knows little Chinese: for
more than a trial name a multilingual host (model=FOLDER) that has learned from SQuAD before.
"""

from __future__ import annotations

import json
from pathlib import Path

from app import Files, run, save_rows, split_by

LANGUAGES = ("en", "zh")
TASK = {"kind": "answers", "start": "start", "max_length": 384}
PAGE = {
    "tasks": {language: TASK for language in LANGUAGES},
    "routers": [{"kind": "mixture", "granularity": "token", "reads": "both", "top": 2}],
    "train": {"epochs": 8.0, "batch_size": 16, "freeze_embeddings": True, "dropout": 0.0},
}
TRIES = [
    {
        "question": "Where does the river rise?",
        "context": "The river rises in the Alps and flows into the sea near Rotterdam.",
    }
]


def prepare(data: Path, out: Path) -> Files:
    """Questions, contexts and answers, split by article."""
    found = {}
    for language in LANGUAGES:
        page = json.loads((data / f"xquad.{language}.json").read_text(encoding="utf-8"))
        splits = split_by([str(n) for n in range(len(page["data"]))])
        rows: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
        for number, article in enumerate(page["data"]):
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answer = question["answers"][0]
                    rows[splits[str(number)]].append(
                        {
                            "question": question["question"],
                            "context": paragraph["context"],
                            "answer": answer["text"],
                            "start": answer["answer_start"],
                        }
                    )
        found[language] = {
            name: save_rows(out / f"{language}-{name}.jsonl", each) for name, each in rows.items()
        }
    return found


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES, asked=["en"])
