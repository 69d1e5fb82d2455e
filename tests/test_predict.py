"""Predictions as JSON lines: classes, entities, budgets."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import tiny

from turnout import UserError
from turnout.predict import predict
from turnout.recipe import load
from turnout.run import open_run
from turnout.train.pipeline import train

NER = """\
model: host
task: {kind: ner, train: train.conll, validation: validation.conll, max_length: 8}
routers: [{kind: exit, granularity: token}]
train: {epochs: 12, batch_size: 8, learning_rate: 0.02, precision: fp32, dropout: 0}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entities")
    tiny.save_host(folder / "host")
    tiny.save_entities(folder)
    (folder / "recipe.yaml").write_text(NER)
    train(load(folder / "recipe.yaml"), folder / "run", progress=False)
    return folder / "run"


def test_entities_with_one_confidence_a_word(run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Ann met the actor in Rome\nBob met in Oslo\n")
    lines = predict(run, str(tmp_path / "texts.txt"), budget=1.0, trace=True)
    first, second = (json.loads(line) for line in lines)
    assert first["tokens"] == ["Ann", "met", "the", "actor", "in", "Rome"]
    assert first["tags"] == ["B-PER", "O", "O", "O", "O", "B-LOC"]
    assert [entity["text"] for entity in first["entities"]] == ["Ann", "Rome"]
    assert len(first["confidence"]) == 6 and all(0 < each <= 1 for each in first["confidence"])
    assert second["tags"] == ["B-PER", "O", "O", "B-LOC"]
    assert first["layers_run"] == 2


def test_words_beyond_the_longest_input_are_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Ann met the actor in Rome in Oslo in Lima\n")
    row = json.loads(next(predict(run, str(tmp_path / "texts.txt"))))
    assert row["cut_words"] == 4 and len(row["tags"]) == 10 and len(row["confidence"]) == 6


def test_a_budget_is_spent(run: Path) -> None:
    source = str(run.parent / "validation.conll")

    def ran(budget: float | None) -> float:
        rows = [json.loads(line) for line in predict(run, source, budget=budget, trace=True)]
        return sum(row["layers_run"] for row in rows) / len(rows)

    assert ran(1.0) == 2 > ran(0.7) > ran(0.2)
    assert ran(None) == ran(open_run(run).recipe.train.budget)
    with pytest.raises(UserError, match="from 0 to 1, got -1"):
        predict(run, source, budget=-1)


def test_paths_are_averaged_and_their_spread_told(run: Path) -> None:
    folder, text = (
        run.parent,
        NER.replace("{kind: exit, granularity: token}", "{kind: random-jump}"),
    )
    (folder / "random.yaml").write_text(text)
    jumps = train(load(folder / "random.yaml"), folder / "random", progress=False).path
    source = str(folder / "validation.conll")
    one, two = (list(predict(jumps, source, budget=0.7, paths=4)) for _ in range(2))
    assert one == two
    rows = [json.loads(line) for line in one]
    assert all(0 <= row["spread"] <= 0.5 for row in rows) and any(row["spread"] for row in rows)
    routes = [
        [json.loads(line)["layers_run"] for line in predict(jumps, source, seed=seed, trace=True)]
        for seed in (3, 3, 4)
    ]
    assert routes[0] == routes[1] != routes[2]


def test_a_kept_column_may_hold_no_number(tmp_path: Path) -> None:
    tiny.save_recipe(tmp_path)
    made = train(load(tmp_path / "recipe.yaml"), tmp_path / "run", progress=False).path
    datasets.Dataset.from_dict(
        {"text": ["good film", "bad film"], "score": [float("nan"), 1.5]}
    ).to_parquet(str(tmp_path / "more.parquet"))
    rows = [json.loads(line) for line in predict(made, str(tmp_path / "more.parquet"))]
    assert [row["score"] for row in rows] == [None, 1.5]


def test_paths_need_a_random_router(run: Path) -> None:
    source = str(run.parent / "validation.conll")
    with pytest.raises(UserError, match="take the same path"):
        predict(run, source, paths=4)
    with pytest.raises(UserError, match="at least 1"):
        predict(run, source, paths=0)
