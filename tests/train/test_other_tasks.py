"""Tasks whose heads are ours, in a recipe of one task: trained, routed, measured, predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from turnout import UserError
from turnout.measure.run import measure
from turnout.predict import predict
from turnout.recipe import load
from turnout.tasks.labels import LabelsConfig, LabelsTask
from turnout.train.pipeline import train

RECIPE = """\
model: host
task: {kind: KIND, train: train.jsonl, validation: train.jsonl, test: train.jsonl, max_length: 16}
routers: [{kind: gate}]
train: {epochs: 15, routed_epochs: 2, batch_size: 8, precision: fp32, learning_rate: 0.01}
measure: {budgets: [0.5], static: [first-1], repeats: 2, dtype: fp32, bootstrap: 50}
"""


def rows(kind: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for n in range(40):
        good, bad = tiny.GOOD[n % 5], tiny.BAD[n % 5]
        words = ["the", good if n % 2 else "film", bad if n % 3 == 0 else "story"]
        names = ["good"] * (n % 2) + ["bad"] * (n % 3 == 0)
        text = " ".join(words)
        if kind == "labels":
            found.append({"text": text, "label": names})
        elif kind == "number":
            found.append(
                {"text": text, "label": 1000 + 300 * (len(names) + 0.5 * ("bad" in names))}
            )
        else:
            context = f"the film and {good} story"
            found.append({"question": "the story", "context": context, "answer": good})
    return found


@pytest.mark.parametrize("kind", ["labels", "number", "answers"])
def test_it_runs_from_recipe_to_answer(kind: str, tmp_path: Path) -> None:
    tiny.save_host(tmp_path / "host")
    lines = "".join(json.dumps(row) + "\n" for row in rows(kind))
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("KIND", kind))
    run = train(load(tmp_path / "recipe.yaml"), tmp_path / "run", say=str, progress=False)
    results = measure(run, run.recipe.measure, say=str, progress=False)
    assert results.dense.quality.value > 0.8
    assert {arm.family for arm in results.arms} == {"dense", "routed", "random", "static"}
    assert results.family("routed")[0].share < 1
    found = [
        json.loads(line) for line in predict(run.path, str(tmp_path / "train.jsonl"), budget=1)
    ]
    assert len(found) == 40
    if kind == "labels":
        right = [
            set(f["prediction"]) == set(r["label"]) for f, r in zip(found, rows(kind), strict=True)
        ]  # type: ignore[call-overload]
    elif kind == "number":
        right = [
            abs(f["prediction"] - r["label"]) < 120 for f, r in zip(found, rows(kind), strict=True)
        ]  # type: ignore[operator]
    else:
        right = [f["prediction"] == r["answer"] for f, r in zip(found, rows(kind), strict=True)]
    assert sum(right) > 30


def test_pairs_are_learned_among_tasks(tmp_path: Path) -> None:
    tiny.save_host(tmp_path / "host")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "answer": "b"}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("KIND", "ranking"))
    with pytest.raises(UserError, match="learns from pairs: write it as one of `tasks`"):
        train(load(tmp_path / "recipe.yaml"), tmp_path / "run", say=str, progress=False)


def test_probabilities_of_labels_come_back_as_logits() -> None:
    task = LabelsTask(LabelsConfig(train="x"), ["good", "bad"])
    logits = np.array([[-3.0, 0.2], [4.0, -0.1]])
    again = task.logits_of(task.probabilities(logits))  # type: ignore[arg-type]
    np.testing.assert_allclose(again, logits, rtol=1e-6)
    assert (task.predictions(again) == task.predictions(logits)).all()


def test_a_single_label_is_reported() -> None:
    task = LabelsTask(LabelsConfig(train="x"), ["good"])
    report = task.report(np.array([[1], [1], [0]]), np.array([[1], [0], [0]]))
    assert (
        report["classes"]["good"]["precision"] == 0.5 and report["classes"]["good"]["support"] == 1
    )
