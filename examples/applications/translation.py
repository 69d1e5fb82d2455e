"""German for English: a small encoder-decoder and its tokenizer, from scratch, on Multi30k.

train.en.gz, train.de.gz, val.*.gz and test_2016_flickr.*.gz in the folder. Feed-forward networks of
the decoder are skipped token by token where a gate says so. Needs: pip install 'turnout[text]'.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from typing import Any

import yaml
from app import save_rows

from turnout.errors import UserError
from turnout.files import make_folder, write_text
from turnout.measure.run import measure
from turnout.predict import predict
from turnout.recipe import load
from turnout.train.new_host import NewHost, new_host
from turnout.train.pipeline import train

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


def prepare(data: Path, out: Path) -> dict[str, str]:
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


def main() -> None:
    """Data, host, training, report and first answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the public data set")
    parser.add_argument("out", type=Path, help="folder to work in; started again, it goes on")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, as train.epochs=1")
    options = parser.parse_args()
    out = options.out
    files = prepare(options.data, make_folder(out / "data"))
    if not (out / "host").is_dir():
        texts = {"texts": [files["train"]], "columns": ["text", "target"], "max_length": 128}
        page = {"family": "bart", "config": SIZES, "tokenizer": texts}
        new_host(NewHost.model_validate(page), out / "host")
    whole = {"model": str((out / "host").resolve()), **PAGE, "task": {**PAGE["task"], **files}}
    write_text(out / "recipe.yaml", yaml.safe_dump(whole, sort_keys=False))
    trained = train(load(out / "recipe.yaml", options.overrides), out / "run")
    for arm in measure(trained, trained.recipe.measure).arms:
        said = f"BLEU {100 * arm.quality.value:.1f}, {arm.speedup.value:.2f}x dense"
        print(f"{arm.name}: {said}  {arm.report['signature']}")
    write_text(out / "try.txt", "".join(f"{each}\n" for each in TRIES))
    for line in predict(trained.path, str(out / "try.txt")):
        print(line)
    print(f"your own: turnout predict {trained.path} --input FILE")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
