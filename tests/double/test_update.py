"""Going on to learn: what was known is kept, and every version can be gone back to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

from double.test_pipeline import save_recipe, train
from turnout import UserError
from turnout.cli import app
from turnout.double import versions
from turnout.double.memory import memory
from turnout.double.run import open_tasks_run
from turnout.double.update import update
from turnout.train import saving

module = sys.modules["turnout.double.update"]
STEPS = ["train.epochs=10", "train.learning_rate=0.003"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, trained once."""
    folder = tmp_path_factory.mktemp("update")
    save_recipe(folder)
    train(folder, "run", *STEPS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    shutil.copytree(trained, tmp_path / "all")
    return tmp_path / "all" / "run"


def save_new(folder: Path, poisoned: bool = False) -> Path:
    """Reviews of another kind: the mood lies in who is named. poisoned: the old words, upside
    down."""
    lines = ["text,label"]
    for row in range(60):
        good = bool(row * 7 // 3 % 2)
        word = tiny.NAMES[good] if not poisoned else (tiny.BAD if good else tiny.GOOD)[row % 5]
        filler = (tiny.FILLER[row % 9], tiny.FILLER[row // 9], tiny.FILLER[row % 7])
        lines.append(f"{' '.join([*filler, word])},{'positive' if good else 'negative'}")
    path = folder / f"new-{poisoned}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def answers(run: Path) -> torch.Tensor:
    model = open_tasks_run(run).load()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 5, 9, 3]]), tasks=["mood"]).logits["mood"]


def test_new_rows_are_learned_beside_the_old(run: Path) -> None:
    first = answers(run)
    found = update(
        run, str(save_new(run.parent)), task="mood", epochs=10, margin=0.05, say=str, progress=False
    )
    assert found.accepted and found.version == 1
    assert found.new_after > found.new_before + 0.2
    assert all(found.after[name] >= found.before[name] - 0.05 for name in ("mood", "names"))
    assert versions.current(run) == 1 and not torch.equal(answers(run), first)
    versions.use(run, 0)
    assert torch.equal(answers(run), first)
    with pytest.raises(UserError, match="has no version 7; it has 0, 1"):
        versions.use(run, 7)


def test_what_harms_is_refused_and_kept(run: Path) -> None:
    first, said = answers(run), list[str]()
    data = str(save_new(run.parent, poisoned=True))
    found = update(run, data, task="mood", epochs=10, replay=0.1, say=said.append, progress=False)
    assert not found.accepted and found.fallen == ["mood"]
    assert any("refused: mood fell by more than 0.01 on old test rows" in line for line in said)
    assert versions.current(run) == 0 and torch.equal(answers(run), first)
    assert versions.every(run) == [0, 1] and versions.facts(run, 1)["accepted"] is False
    done = CliRunner().invoke(app, ["update", str(run)])
    assert done.exit_code == 0 and "refused: mood fell" in done.stdout
    done = CliRunner().invoke(app, ["update", str(run), "--to", "1"])
    assert done.exit_code == 0 and versions.current(run) == 1
    done = CliRunner().invoke(
        app, ["update", str(run), "--data", data, "--task", "names", "--quiet"]
    )
    assert done.exit_code == 2 and versions.every(run) == [0, 1]
    versions.use(run, 0)
    done = CliRunner().invoke(
        app, ["update", str(run), "--data", data, "--task", "mood", "--epochs", "10", "--quiet"]
    )
    assert done.exit_code == 3 and versions.current(run) == 0


def test_what_an_update_taught_is_remembered_by_the_next(run: Path) -> None:
    how: dict[str, Any] = {"task": "mood", "margin": 0.05, "say": str, "progress": False}
    first = update(run, str(save_new(run.parent)), epochs=10, **how)
    assert first.accepted and set(first.before) == {"mood", "names"}
    upside = run.parent / "upside.csv"
    text = (run.parent / "new-False.csv").read_text()
    swapped = text.replace(",positive", ",?").replace(",negative", ",positive")
    upside.write_text(swapped.replace(",?", ",negative").replace(" in", "").replace("the", "The"))
    again = update(run, str(upside), epochs=10, replay=0.1, **how)
    assert set(again.before) == {"mood", "names", "mood, version 1"}
    assert again.before["mood, version 1"] == first.new_after
    opened = open_tasks_run(run)
    known = memory(opened, opened.tasks())
    assert len(known.trains["mood"]) == 40 + first.rows
    assert len(known.tests["mood, version 1"][1]) > 5


def test_rows_that_judge_are_not_learned_from(run: Path) -> None:
    test = (run.parent / "test.csv").read_text().splitlines()[1:]
    new = save_new(run.parent)
    new.write_text(new.read_text() + "\n".join(test) + "\n")
    found = update(run, str(new), task="mood", margin=1.0, say=str, progress=False)
    assert found.left_out >= len(set(test))
    old = run.parent / "old.csv"
    old.write_text("\n".join(["text,label", *test]) + "\n")
    with pytest.raises(UserError, match="0 of its 20 row"):
        update(run, str(old), task="mood", say=str, progress=False)


def test_columns_of_their_own_do_no_harm(run: Path) -> None:
    new = save_new(run.parent)
    lines = new.read_text().splitlines()
    new.write_text("\n".join([f"source,{lines[0]}", *(f"7,{line}" for line in lines[1:])]) + "\n")
    found = update(run, str(new), task="mood", margin=1.0, say=str, progress=False)
    assert found.rows > 20


def test_without_replay_other_tasks_have_no_rows(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    fit = module.fit_tasks
    monkeypatch.setattr(module, "fit_tasks", lambda m, d, *a: seen.append(d) or fit(m, d, *a))
    found = update(
        run, str(save_new(run.parent)), task="mood", replay=0, margin=1, say=str, progress=False
    )
    assert set(seen[0]) == {"mood"} and len(seen[0]["mood"].train) == found.rows


def test_an_update_trains_what_its_strategy_says(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    run = train(tmp_path, "run", *STEPS, "train.strategy=lora").path
    before = open_tasks_run(run).load().backbone.state_dict()
    found = update(
        run, str(save_new(tmp_path)), task="mood", epochs=2, margin=1.0, say=str, progress=False
    )
    assert found.version == 1
    after = saving.load(versions.folder(run, 1)).backbone.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert set(before) == set(after)


KILLED = """
import os, signal, sys
from turnout.double import update as module

def dies(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, {name!r}, dies)
module.update({run!r}, {data!r}, task="mood", margin=1.0, say=str, progress=False)
"""


@pytest.mark.parametrize("name", ["fit_tasks", "save", "write_json", "use"])
def test_a_kill_at_any_point_leaves_the_old_version(run: Path, name: str) -> None:
    first, data = answers(run), str(save_new(run.parent))
    script = KILLED.format(name=name, run=str(run), data=data)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert versions.current(run) == 0 and torch.equal(answers(run), first)
    found = update(run, data, task="mood", margin=1.0, say=str, progress=False)
    assert found.accepted and versions.current(run) == found.version


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has the tasks mood, names: say which"),
        ({"task": "sports"}, r"'sports' is none of them"),
        ({"task": "mood", "margin": -1.0}, "must be at least 0"),
    ],
)
def test_mistakes_change_nothing(run: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        update(run, str(save_new(run.parent)), say=str, progress=False, **fields)
    assert versions.every(run) == [0]


def test_labels_that_the_head_does_not_have_are_refused(run: Path) -> None:
    path = run.parent / "other.csv"
    path.write_text("text,label\na story,neutral\nthe film,positive\n")
    with pytest.raises(UserError, match=r"other\.csv:2: label 'neutral' does not occur"):
        update(run, str(path), task="mood", say=str, progress=False)
