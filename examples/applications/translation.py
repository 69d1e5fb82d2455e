"""German for English: a small encoder-decoder and its tokenizer, from scratch, on Multi30k.

train.en.gz, train.de.gz, val.*.gz and test_2016_flickr.*.gz in the folder. Feed-forward networks of
the decoder are skipped token by token where a gate says so. Needs: pip install 'turnout[text]'.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from app import save_rows
from writer import Files, write

from turnout.train.new_host import NewHost, new_host

SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
SIDES = ("encoder", "decoder")
SIZES: dict[str, Any] = {
    **{"d_model": 256, "max_position_embeddings": 128, "scale_embedding": True},
    **{f"{side}_layers": 3 for side in SIDES},
    **{f"{side}_attention_heads": 4 for side in SIDES},
    **{f"{side}_ffn_dim": 1024 for side in SIDES},
}
GATE = {"kind": "gate", "stack": "decoder", "site": "ffn", "granularity": "token"}
PAGE: dict[str, Any] = {
    "task": {"kind": "rewriting", "max_length": 64, "max_target": 64},
    "routers": [GATE],
    "train": {"epochs": 12.0, "routed_epochs": 3.0, "batch_size": 64, "learning_rate": 1e-3},
    "measure": {"budgets": [0.75, 0.5], "time_examples": 200},
}
TRIES = ["A man in a blue shirt is standing on a ladder.", "Two children play in the snow."]


def prepare(data: Path, out: Path) -> Files:
    """Captions in English and in German, line by line."""
    found = {}
    for split, name in SPLITS.items():
        sides = []
        for language in ("en", "de"):
            with gzip.open(data / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
                sides.append([line.strip() for line in file])
        pairs = zip(*sides, strict=True)
        rows = [{"text": text, "target": target} for text, target in pairs if text and target]
        found[split] = save_rows(out / f"{split}.jsonl", rows)
    return found


def make_host(files: Files, out: Path) -> Path:
    """A BART of 3 + 3 layers; byte pairs of both languages."""
    texts = {"texts": [files["train"]], "columns": ["text", "target"], "max_length": 128}
    page = {"family": "bart", "config": SIZES, "tokenizer": texts}
    return new_host(NewHost.model_validate(page), out)


if __name__ == "__main__":
    write(__doc__ or "", prepare, make_host, PAGE, TRIES)
