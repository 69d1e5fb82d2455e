"""Each recipe in examples/ trains, loads and predicts, on a tiny host and tiny data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny

import turnout
from turnout.predict import predict
from turnout.recipe import load
from turnout.train.pipeline import train

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
DEPTH = 6  # the examples cut to 4 layers
QUICK = ("task.max_length=16", "train.precision=fp32", "train.epochs=1", "train.routed_epochs=1")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    kind = re.findall(r"  kind: (\w+)", path.read_text())[0]
    host = tiny.llama_config if kind == "language" else tiny.bert_config
    tiny.save_host(tmp_path / "host", host(num_hidden_layers=DEPTH))
    save = {"ner": tiny.save_entities, "language": tiny.save_texts}.get(kind, tiny.save_reviews)
    data, answer = save(tmp_path), {"ner": "tags", "language": "perplexity"}.get(kind, "prediction")
    files = [f"task.{name}={file}" for name, file in data.items()]
    recipe = load(path, [f"model={tmp_path / 'host'}", *files, *QUICK])
    train(recipe, tmp_path / "run", progress=False)
    model = turnout.load(tmp_path / "run")
    assert len(model.turnout.all_routers()) == len(recipe.routers)
    assert bool(model.turnout.noise) == bool(recipe.noise)
    lines = predict(tmp_path / "run", str(data["test"]), budget=0.5, trace=True)
    rows = [json.loads(line) for line in lines]
    assert len(rows) == (24 if kind == "ner" else 20)
    assert all(row[answer] for row in rows)
    ran = sum(row["layers_run"] for row in rows) / len(rows)
    adds = all(router.site == "adapter" for router in recipe.routers)  # beside a host that runs
    assert ran == DEPTH if adds else 0 < ran < DEPTH


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8
