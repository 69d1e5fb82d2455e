"""Do two sentences say the same: MRPC (train.tsv, val.tsv, test.tsv in the folder)."""

from __future__ import annotations

from pathlib import Path

from app import Files, run, save_rows

PAGE = {
    "tasks": {"same": {"kind": "classification", "text_pair": "other", "max_length": 96}},
    "routers": [{"kind": "mixture", "adapters": 4, "top": 2}],
    "train": {"epochs": 4.0, "freeze_embeddings": True, "dropout": 0.0, "learning_rate": 2e-4},
}
TRIES = [{"text": "The shop closed on Monday.", "other": "On Monday the shop shut its doors."}]


def prepare(data: Path, out: Path) -> Files:
    """Pairs, labelled yes or no."""
    files = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = (data / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        cells = [line.split("\t") for line in lines if line]
        rows = [
            {"text": one, "other": two, "label": "yes" if same == "1" else "no"}
            for same, _, _, one, two in cells
        ]
        files[split] = save_rows(out / f"{split}.jsonl", rows)
    return {"same": files}


if __name__ == "__main__":
    run(__doc__ or "", prepare, PAGE, TRIES)
