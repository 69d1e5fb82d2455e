"""The demonstration: its sizes, its recipe, and (slow) the whole of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from turnout.demo import data
from turnout.demo.__main__ import (
    MODEL,
    TEST,
    TRAIN,
    app,
    fitting,
    folder_of,
    make_recipe,
    static_of,
)
from turnout.hosts.cut import static_layers
from turnout.measure.results import load
from turnout.run import start_run

CACHE = Path(os.environ.get("TURNOUT_CACHE", Path.home() / ".cache" / "turnout"))


def test_sizes_follow_speed_and_time() -> None:
    speeds = [500, 1000, 2000, 3000, 5000, 50_000]
    sizes = [fitting(speed, 480) for speed in speeds]
    assert sizes == sorted(sizes)
    assert sizes[0][0] >= 500 and sizes[0][1] >= 200
    assert sizes[-1] == (TRAIN, TEST)
    assert fitting(2800, 480)[0] > 5000 and fitting(2800, 480)[1] > 1500
    assert fitting(2800, 240)[0] < fitting(2800, 480)[0]


@pytest.mark.parametrize("quick", [True, False])
def test_recipe_is_valid(quick: bool, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, 6000, 2000, quick)
    assert recipe.task.max_train == 6000 and recipe.measure.max_examples == 2000
    assert all(static_layers(name, 6) for name in recipe.measure.static)
    assert recipe.routers[0].kind == "exit"


def test_another_host_has_a_run_folder_and_cuts_of_its_own(tmp_path: Path) -> None:
    assert str(folder_of(MODEL)) == "runs/demo"
    assert str(folder_of("/models/small-bert")) == "runs/demo-small-bert"
    tiny.save_host(tmp_path / "host")  # two layers
    assert static_of(str(tmp_path / "host"), quick=False) == ["first-1"]
    assert static_of(MODEL, quick=False) == ["first-3", "first-2"]


@pytest.mark.parametrize("change", [["--model", "another/host"], ["--quick"]])
def test_a_run_of_another_kind_is_not_gone_on_with(change: list[str], tmp_path: Path) -> None:
    start_run(tmp_path / "run", make_recipe(tmp_path, 500, 200, quick=False), ["a", "b"])
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "run"), *change])
    assert done.exit_code == 2
    assert f"{tmp_path}/run holds a run of another kind" in done.output.replace("\n", "")


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / data.ARCHIVE).write_bytes(b"not an archive")
    options = ["--quick", "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert "sha256" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not any((CACHE / name).exists() for name in (data.ARCHIVE, "sentiment")),
    reason="the data are not in the cache",
)
def test_the_whole(tmp_path: Path) -> None:
    options = ["--quick", "--out", str(tmp_path / "run"), "--cache", str(CACHE)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    results = load(tmp_path / "run" / "results.json")
    assert [arm.name for arm in results.arms] == ["dense", "routed-50", "first-3", "random-50"]
    assert str(tmp_path / "run" / "report.html") in done.output.replace("\n", "")
    again = CliRunner().invoke(app, options)  # nothing is trained twice
    assert again.exit_code == 0 and "trained already" in again.output
