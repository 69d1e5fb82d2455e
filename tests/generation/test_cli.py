"""The commands that write, from the outside."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner, Result

from turnout.cli import app
from turnout.generation.augment_files import Part
from turnout.generation.writer import Writer


def call(*words: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], **more)


def test_help_has_examples() -> None:
    for name in ("chat", "generate", "augment", "vary"):
        shown = call(name, "--help")
        assert shown.exit_code == 0 and f"Example: turnout {name} RUN" in shown.stdout


def test_generate_side_by_side_and_into_a_file(routed_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a story\n\nAnn met\n")
    out = tmp_path / "texts" / "out.jsonl"
    words = ["generate", routed_folder, "the film", "--file", tmp_path / "prompts.txt"]
    words += ["--samples", "3", "--max-tokens", "5", "--seed", "1", "--budget", "0.5"]
    done = call(*words, "--side-by-side", "--out", out, "--device", "cpu")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [
        p for p in ("the film", "a story", "Ann met") for _ in range(3)
    ]
    assert set(rows[0]) == {"prompt", "sample", "text", "tokens", "seconds", "share", "stop"}
    assert all(0 <= row["share"] <= 1 and row["tokens"] <= 5 for row in rows)
    boxes = [line for line in done.stdout.splitlines() if line.count("╭") == 3]
    assert len(boxes) == 3 and "of the routed work" in done.stdout
    quiet = call(*words, "--quiet")
    assert [json.loads(line)["text"] for line in quiet.stdout.splitlines()] == [
        row["text"] for row in rows
    ]


def test_mistakes_are_one_line_and_code_2(routed_folder: Path, tmp_path: Path) -> None:
    for words, said in (
        (["generate", routed_folder], "no prompt"),
        (["generate", routed_folder, "a", "--budget", "2"], "budget: found 2.0"),
        (["generate", routed_folder, "a", "--noise", "1"], "without noise"),
        (["generate", tmp_path / "none" / "there", "a"], "no such folder"),
        (["chat", routed_folder, "--answers", tmp_path / "no.csv"], "no such file"),
        (["vary", routed_folder, "--prompts", tmp_path / "no", "--out", "x"], "no such file"),
    ):
        done = call(*words)
        assert done.exit_code == 2 and said in done.stderr, done.output
        assert done.stderr.count("\n") == 1


def test_chat_reads_lines_of_a_pipe(routed_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk" / "h.json"
    done = call(
        "chat", routed_folder, "--history", file, "--max-tokens", "3",
        input="the film\n\n/history\n/nothing\n",
    )  # fmt: skip
    assert done.exit_code == 0 and "user: the film" in done.stdout
    assert "unknown command /nothing" in done.stdout and "you>" not in done.stdout
    assert len(json.loads(file.read_text())["turns"]) == 2
    file.write_text("{")
    done = call("chat", routed_folder, "--history", file)
    assert done.exit_code == 2 and "h.json:1:" in done.stderr and file.read_text() == "{"


def augment_words(folder: Path, routed: Path) -> list[str | Path]:
    tiny.save_reviews(folder, rows=12)
    return [
        "augment", routed, "--data", folder / "train.csv", "--out", folder / "more.csv",
        "--per-example", "4", "--max-tokens", "8", "--seed", "3", "--quiet",
    ]  # fmt: skip


def test_augment_and_what_it_is_worth(routed_folder: Path, tmp_path: Path) -> None:
    words = augment_words(tmp_path, routed_folder)
    done = call(*words, "--judge", tmp_path / "test.csv")
    assert done.exit_code == 0, done.output
    counts, judged = (json.loads(line) for line in done.stdout.splitlines())
    assert counts["asked"] == 48 and counts["kept"] > 0
    assert counts["asked"] == sum(
        counts[name] for name in ("empty", "duplicate", "inconsistent", "kept")
    )
    assert judged["test_rows"] == 6 and 0 <= judged["accuracy_with"] <= 1
    assert judged["interval"][0] <= judged["gain"] <= judged["interval"][1]
    rows = list(csv.DictReader((tmp_path / "more.csv").read_text().splitlines()))
    assert len(rows) == counts["kept"] and set(rows[0]) == {"text", "label", "source"}
    assert not (tmp_path / "more.csv.part").exists()
    for wrong, said in (
        (["--text", "words"], "no column 'words'"),
        (["--template", "{text}"], "needs {label}"),
        (["--out", tmp_path / "x.parquet"], "ends in .csv"),
        (["--recipe", tmp_path / "r.yaml"], "--recipe is for --judge"),
        (["--check", tmp_path], "not a run folder"),
    ):
        done = call(*words, *wrong)
        assert done.exit_code == 2 and said in done.stderr, done.output


def test_augment_goes_on(
    routed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = augment_words(tmp_path, routed_folder)
    assert call(*words).exit_code == 0
    whole = (tmp_path / "more.csv").read_text()
    (tmp_path / "more.csv").unlink()
    write, calls = Writer.write, [0]

    def stops(self: Writer, *given: Any, **more: Any) -> Any:
        calls[0] += 1
        return write(self, *given, **more) if calls[0] == 1 else []

    monkeypatch.setattr(Writer, "write", stops)
    done = call(*words)
    assert done.exit_code == 130 and "goes on" in done.stderr
    part = tmp_path / "more.csv.part"
    assert len(part.read_text().splitlines()) == 33
    part.write_text(part.read_text()[:-9])  # cut short
    monkeypatch.setattr(Writer, "write", write)
    assert call(*words).exit_code == 0
    assert (tmp_path / "more.csv").read_text() == whole and not part.exists()


def test_a_part_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    part = Part(tmp_path / "out.csv", ["a"])
    part.add(["one\ntwo", *["three"] * 32])
    assert Part(tmp_path / "out.csv", ["a"]).texts == ["one\ntwo", *["three"] * 31]
    assert Part(tmp_path / "out.csv", ["b"]).texts == []


def test_vary_writes_results_and_a_picture(routed_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the film\na story\n")
    tiny.save_host(tmp_path / "bert")
    done = call(
        "vary", routed_folder, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "v.json",
        "--samples", "3", "--arms", "temperature=0.5,2", "--arms", "budget=0.5",
        "--encoder", tmp_path / "bert", "--picture", tmp_path / "v.svg", "--max-tokens", "6",
        "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "v.json").read_text())["rows"]
    assert [(row["kind"], row["value"]) for row in rows] == [
        ("temperature", 0.5), ("temperature", 2.0), ("budget", 0.5)
    ]  # fmt: skip
    assert 0 <= rows[0]["diversity"]["spread"]["value"] <= 2
    assert "temperature 0.5" in done.stdout and (tmp_path / "v.svg").read_text().endswith(
        "</svg>\n"
    )
