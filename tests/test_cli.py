"""The commands, from the outside: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner, Result

import turnout
from turnout.cli import app
from turnout.contest import CONTENDERS
from turnout.files import read_json, write_json
from turnout.measure import results
from turnout.routers import ROUTERS

QUICK = ("train.epochs=1", "train.max_steps=4")


def call(*words: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], **more)


def plain(text: str) -> str:
    """Without colours, and with the line ends of a narrow terminal taken out."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_recipe(folder)
    done = call("train", folder / "recipe.yaml", "--out", folder / "run", *QUICK)
    assert done.exit_code == 0, done.output
    assert "next: turnout measure" in done.stderr and not done.stdout
    return folder


def test_help_and_version_do_not_wait_for_torch() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "turnout", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.perf_counter() - start < 10
    for name in ("train", "measure", "predict", "inspect", "routers", "schema"):
        assert f" {name} " in done.stdout
    assert not re.search(r"\| +(torch|transformers|pydantic)$", done.stderr, re.MULTILINE)
    assert call("--version").stdout == f"turnout {turnout.__version__}\n"


def test_public_names_are_imported_when_used() -> None:
    code = (
        "import sys, turnout; assert 'torch' not in sys.modules; "
        "import turnout.install, turnout.train.saving; "
        "assert all(getattr(turnout, n) is not None for n in dir(turnout)); "
        "assert callable(turnout.install) and turnout.install is not sys.modules['turnout.install']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'instal'"):
        _ = turnout.instal  # type: ignore[attr-defined]


def test_predict_from_a_file_and_from_standard_input(folder: Path) -> None:
    done = call("predict", folder / "run", "--input", folder / "test.csv", "--trace")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 20
    assert set(rows[0]) == {"text", "prediction", "probabilities", "layers_run"}
    assert rows[0]["prediction"] in ("negative", "positive")
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert all(0 <= row["layers_run"] <= 2 for row in rows)
    text = "".join(f"{row['text']}\n" for row in rows)
    again = call("predict", folder / "run", "--input", "-", "--trace", input=text)
    found = [json.loads(line) for line in again.stdout.splitlines()]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in rows]


def test_predict_tells_the_share_and_refuses_a_folder_before_the_work(
    folder: Path, tmp_path: Path
) -> None:
    words = ["predict", folder / "run", "--input", folder / "test.csv"]
    done = call(*words, "--budget", "1")
    assert "share of the routed work that was spent: 1.000" in done.stderr
    (tmp_path / "file").write_text("")
    done = call(*words, "--output", tmp_path / "file" / "rows.jsonl")
    assert done.exit_code == 2 and "cannot make the folder" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_predict_to_a_full_disk(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "turnout",
        "predict",
        folder / "run",
        "-i",
        folder / "test.csv",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and "cannot write to standard output: No space left" in done.stderr


def test_predict_at_a_budget_into_a_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["predict", folder / "run", "--input", folder / "test.csv", "--trace"]
    ran = []
    for budget in ("1", "0.1"):
        done = call(*words, "--budget", budget, "--output", out, "--batch-tokens", "20")
        assert done.exit_code == 0 and not done.stdout, done.output
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        ran.append(sum(row["layers_run"] for row in rows) / len(rows))
    assert ran[0] == 2 > ran[1]
    assert [item.name for item in tmp_path.iterdir()] == ["out.jsonl"]


def test_measure_writes_results_and_report(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    done = call("measure", run, "repeats=3", "measure.budgets=[0.5]")
    assert done.exit_code == 0, done.output
    assert "dense" in done.stdout
    found = results.load(run / "results.json")
    assert {arm.family for arm in found.arms} == {"dense", "routed", "random", "static"}
    assert [len(arm.seconds.runs) for arm in found.arms] == [3] * len(found.arms)
    assert [arm.budget for arm in found.family("routed")] == [0.5]
    assert all(a.to_dense and a.to_dense.low <= a.to_dense.value for a in found.arms)
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert (run / "static" / "first-1" / "model.safetensors").is_file()


def test_measure_refuses_a_wrong_field(folder: Path) -> None:
    done = call("measure", folder / "run", "repeat=3")
    assert done.exit_code == 2 and "measure.repeat" in plain(done.stderr)


def test_compare_draws_one_table_over_seeds(folder: Path, tmp_path: Path) -> None:
    few = (*QUICK, "measure.repeats=2", "measure.budgets=[0.5]", "measure.static=[first-1]")
    start = ("compare", folder / "recipe.yaml", "--out", tmp_path / "out")
    done = call(*start, "--routers", "gate, recipe", "--seeds", "0, 1", *few)
    assert done.exit_code == 0, done.output
    shown = plain(done.stdout)
    assert "Means over 2 seeds" in shown and "cut models" in shown and "GFLOPs" in shown
    assert "comparison.md" in plain(done.stderr)
    assert (tmp_path / "out/seed-1/report.html").is_file()
    for wrong, told in (("0,x", "whole numbers with commas"), ("1,1", "different whole numbers")):
        done = call(*start, "--seeds", wrong)
        assert done.exit_code == 2 and told in plain(done.stderr)


def test_help_of_compare_names_every_contender() -> None:
    told = plain(call("compare", "--help", env={"COLUMNS": "200"}).stdout)
    assert all(name in told for name in CONTENDERS)


def test_inspect_a_model_and_a_run(folder: Path) -> None:
    done = call("inspect", folder / "host")
    assert done.exit_code == 0, done.output
    for part in (
        "BertModel",
        "encoder.1.attention",
        "encoder.0.ffn",
        "encoder: 2 blocks",
        "3.58 k",
    ):
        assert part in done.stdout
    (folder / "only").mkdir()
    shutil.copy(folder / "host" / "config.json", folder / "only")
    assert call("inspect", folder / "only").exit_code == 0  # weights are not needed
    done = call("inspect", folder / "run")
    assert done.exit_code == 0, done.output
    for part in ("0_exit", "dial of 0_exit", "negative, positive", "0.5 when loaded"):
        assert part in done.stdout
    done = call("inspect", folder / "run" / "routed")  # as save_pretrained leaves it
    assert done.exit_code == 0 and "dial of 0_exit" in done.stdout


def test_routers_names_each_with_its_fields_and_papers() -> None:
    done = call("routers")
    assert done.exit_code == 0
    for kind in ROUTERS:
        assert f"{kind}: " in done.stdout
        for name in ROUTERS[kind].Config.model_fields:
            assert name == "kind" or f" {name} " in done.stdout
    assert "arXiv 2004.02178" in plain(done.stdout)


def test_schemas_are_json() -> None:
    assert json.loads(call("schema").stdout)["required"] == ["model", "task"]
    assert "arms" in json.loads(call("schema", "--results").stdout)["properties"]


def test_a_mistake_is_a_message_and_code_2(folder: Path) -> None:
    run, recipe, out = folder / "run", folder / "recipe.yaml", folder / "other"
    (folder / "empty.csv").write_text("")
    (folder / "strange.csv").write_text("text,label\nfine,neutral\n")
    (folder / "short.conll").write_text("Ann B-PER\nmet\n")
    (folder / "later").mkdir()
    write_json(folder / "later" / "run.json", {"format": 7, "turnout": "8.0"})
    cases = (
        (("train", folder / "recipes.yaml", "--out", out), "no such file; did you mean"),
        (("train", recipe, "--out", out, "train.epoch=1"), "unknown field; did you mean 'epochs'?"),
        (("train", recipe, "--out", out, "model=./nowhere"), "no such file or folder"),
        (("train", recipe, "--out", out, f"task.train={folder}/empty.csv"), "empty.csv is empty"),
        (
            ("train", recipe, "--out", out, f"task.validation={folder}/strange.csv"),
            "strange.csv:2: label 'neutral' does not occur in training; known labels: 'negative'",
        ),
        (
            ("train", recipe, "--out", out, f"task={{kind: ner, train: {folder}/short.conll}}"),
            "short.conll:2: found 1 columns, expected 2",
        ),
        (("predict", run, "--input", folder / "no.csv"), "no.csv: no such file"),
        (("predict", run, "--input", "-", "--budget", "1.5"), "number from 0 to 1, got 1.5"),
        (("predict", folder / "later", "--input", "-"), "format 7, written by turnout 8.0"),
        (("predict", folder, "--input", "-"), "is not a run folder: it holds no run.json"),
        (("measure", folder / "nothing"), "there is no such folder"),
        (("inspect", folder / "nothing"), "no such folder"),
    )
    for words, message in cases:
        done = call(*words, input="fine\n")
        assert (done.exit_code, done.stdout) == (2, ""), (words, done.output)
        assert message in plain(done.stderr), done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()
    assert call("predict", run).exit_code == 2  # typer's own messages
    assert call("prediction").exit_code == 2


def test_a_cut_off_model_is_told_by_every_command(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    file = run / "routed" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for words in (("predict", run, "--input", "-"), ("measure", run), ("inspect", run)):
        done = call(*words, input="fine\n")
        assert done.exit_code == 2 and "cut short or damaged" in plain(done.stderr)


def test_a_stopped_training_says_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from turnout.train import pipeline

    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "calibrate", stopped)
        done = call("train", folder / "recipe.yaml", "--out", tmp_path / "run", *QUICK)
    assert done.exit_code == 130
    assert "the same command goes on from the last checkpoint" in plain(done.stderr)
    assert "is trained already" not in done.stderr
    done = call("predict", tmp_path / "run", "--input", "-", input="fine\n")
    assert done.exit_code == 2 and "has no routed/ yet" in plain(done.stderr)
    done = call("train", folder / "recipe.yaml", "--out", tmp_path / "run", *QUICK)
    assert done.exit_code == 0, done.output
    assert read_json(tmp_path / "run" / "run.json")["labels"] == ["negative", "positive"]


def test_quiet_says_nothing(folder: Path, tmp_path: Path) -> None:
    done = call("train", folder / "recipe.yaml", "--out", tmp_path / "run", "--quiet", *QUICK)
    assert (done.exit_code, done.output) == (0, "")


def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("turnout.inspect.inspect", broken)
    done = call("inspect", folder / "run")
    assert isinstance(done.exception, RuntimeError)
