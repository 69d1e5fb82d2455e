"""A task that comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from double.test_pipeline import save_recipe, train
from turnout import UserError
from turnout.double.add import add_task, task_page
from turnout.double.run import open_tasks_run
from turnout.files import read_json
from turnout.tasks import ClassificationConfig

ROUTERS = {
    "plain": "[]",
    "by task": "[{kind: mixture, reads: task, adapters: 3}]",
    "by both": "[{kind: mixture, reads: both, adapters: 3, top: 2}]",
}


def late(folder: Path) -> ClassificationConfig:
    """Does a text name Ann."""
    rows = [
        f"{who} met the actor {n},{'yes' if who == 'Ann' else 'no'}"
        for n in range(20)
        for who in ("Ann", "Bob")
    ]
    path = folder / "late.csv"
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return ClassificationConfig(train=str(path), max_length=16)


@pytest.mark.parametrize("routers", ROUTERS.values(), ids=ROUTERS)
def test_the_others_answer_as_before(routers: str, tmp_path: Path) -> None:
    save_recipe(tmp_path)
    before = train(tmp_path, "run", f"routers={routers}", "train.epochs=3")
    run = add_task(
        before.path, "ann", late(tmp_path), tmp_path / "more", epochs=12, say=str, progress=False
    )
    assert read_json(run.path / "training.json")["validation"]["ann"] > 0.9
    ids = torch.tensor([[2, 5, 9, 3], [2, 6, 8, 3]])
    old: Any = before.load()
    new: Any = open_tasks_run(tmp_path / "more").load()
    assert new.tasks == ["mood", "names", "ann"]
    with torch.no_grad():
        one = old(input_ids=ids, tasks=["mood", "names"]).logits
        two = new(input_ids=ids, tasks=["mood", "names"]).logits
    assert all(torch.equal(one[name], two[name]) for name in one)
    before_all, after = old.state_dict(), new.state_dict()
    changed = {
        name
        for name, value in after.items()
        if name not in before_all
        or (value.shape == before_all[name].shape and not torch.equal(value, before_all[name]))
    }
    assert changed == {name for name in after if name.startswith("heads.ann.")}


def test_what_cannot_take_a_task_says_so(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(
        tmp_path, "run", "routers=[{kind: mixture, adapters: 4, private: 1}]", "train.epochs=1"
    )
    config = late(tmp_path)
    with pytest.raises(UserError, match="private units cannot take another task"):
        add_task(run.path, "ann", config, tmp_path / "more", say=str, progress=False)
    with pytest.raises(UserError, match="has a task 'mood' already"):
        add_task(run.path, "mood", config, tmp_path / "more", say=str, progress=False)


def test_a_page_names_one_task(tmp_path: Path) -> None:
    late(tmp_path)
    page = tmp_path / "late.yaml"
    page.write_text("tasks:\n  ann: {kind: classification, train: late.csv, max_length: 16}\n")
    name, config = task_page(page)
    assert name == "ann" and config.train == str(tmp_path / "late.csv")
    page.write_text("tasks:\n  ann: {kind: classification, trian: late.csv}\n")
    with pytest.raises(UserError, match=r"late\.yaml:2: tasks\.ann\.trian: unknown field"):
        task_page(page)


def test_the_dial_stays_as_it_was(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    routers = "routers=[{kind: gate, site: layer}, {kind: mixture, reads: both}]"
    run = train(tmp_path, "run", routers, "train.budget=0.5", "train.epochs=2")
    made = add_task(run.path, "ann", late(tmp_path), tmp_path / "more", say=str, progress=False)
    before, after = run.load(), made.load()
    levels = [model.turnout.all_routers()[0].levels for model in (before, after)]
    assert levels[0] == levels[1] and len(levels[0]) > 1
    assert before.turnout.budget == after.turnout.budget == 0.5
    ids = torch.tensor([[2, 5, 9, 3], [2, 11, 8, 3]])
    with torch.no_grad():
        for task in ("mood", "names"):
            ours, theirs = (m(input_ids=ids, tasks=[task]).logits[task] for m in (before, after))
            assert torch.equal(ours, theirs)
