"""Each application in examples/applications runs from its data step to an answer, on tiny data in
the form of the public files."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from turnout.files import make_folder, read_json
from turnout.train.new_pair import NewPair, new_pair

FOLDER = Path(__file__).parents[1] / "examples" / "applications"
ALL = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("app", "writer"))
WRITE = ("translation", "headlines")
APPS = [name for name in ALL if name not in WRITE]


def words(place: int) -> str:
    return f"the {tiny.GOOD[place % 5] if place % 2 else tiny.BAD[place % 5]} film was very slow"


def news_topics(data: Path) -> list[str]:
    names = ("world", "sports", "business", "sci/tech")
    rows = [f"{words(n)} {n}\t{names[n % 4]}" for n in range(40)]
    (data / "train_slice_10k_description_only.tsv").write_text("\n".join(rows) + "\n")
    rows = [f'"{n % 4 + 1}","title","{words(n)}, so it was"' for n in range(12)]
    (data / "test.csv").write_text("\n".join(rows) + "\n")
    return ["topic"]


def financial_sentiment(data: Path) -> list[str]:
    labels = ("positive", "negative", "neutral")
    rows = [f"{words(n)} {n} .@{labels[n % 3]}" for n in range(60)]
    (data / "Sentences_50Agree.txt").write_text("\n".join(rows) + "\n")
    return ["sentiment"]


def named_entities(data: Path) -> list[str]:
    for name in ("train", "testa", "testb"):
        lines = ["Ann NNP I-NP I-PER", "met VB I-VP O", "in IN I-PP O", "Rome NNP I-NP I-LOC", ""]
        block = "\n".join(lines)
        (data / f"eng.{name}").write_text("-DOCSTART- -X- O O\n\n" + f"{block}\n" * 12)
    return ["entities"]


def paraphrase(data: Path) -> list[str]:
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows += [f"{n % 2}\t1\t2\t{words(n)}\t{words(n + n % 2)}" for n in range(30)]
    for name in ("train", "val", "test"):
        (data / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return ["same"]


def question_answering(data: Path) -> list[str]:
    def article(n: int) -> dict[str, Any]:
        question = {"question": "the actor", "answers": [{"text": "Rome", "answer_start": 11}]}
        return {"paragraphs": [{"context": f"Ann met in Rome {n}", "qas": [question]}]}

    page = {"data": [article(n) for n in range(30)]}
    for language in ("en", "zh"):
        (data / f"xquad.{language}.json").write_text(json.dumps(page))
    return ["en", "zh"]


def customer_service(data: Path) -> list[str]:
    dialogues = []
    for n in range(30):
        text = f"find the film in {tiny.PLACES[n % 3]}"
        slot = {"slot": "city", "start": 17, "exclusive_end": len(text)}
        state = {"active_intent": ("FindFilm", "BuyTicket")[n % 2]}
        turns = [
            {"speaker": "USER", "utterance": text, "frames": [{"slots": [slot], "state": state}]},
            {"speaker": "SYSTEM", "utterance": f"a {tiny.GOOD[n % 5]} story {n}", "frames": []},
        ]
        dialogues.append({"dialogue_id": str(n), "turns": turns})
    (data / "train_dialogues_001.json").write_text(json.dumps(dialogues))
    return ["intent", "slots", "reply"]


def intents(data: Path) -> list[str]:
    rows = [f"{words(n)} {n},{('find', 'oos')[n % 2]}" for n in range(30)]
    for name in ("train", "val", "test"):
        (data / f"{name}.csv").write_text("\n".join(["text,intent", *rows]) + "\n")
    return ["intent"]


WRITERS: dict[str, Callable[[Path], list[str]]] = {
    each.__name__: each
    for each in (
        news_topics,
        financial_sentiment,
        named_entities,
        paraphrase,
        question_answering,
        customer_service,
        intents,
    )
}


@pytest.mark.parametrize("name", APPS)
def test_an_application_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    tasks = WRITERS[name](data)
    tiny.save_host(tmp_path / "host")
    overrides = [f"model={tmp_path / 'host'}", "train.max_steps=3", "train.precision=fp32"]
    overrides += ["measure.repeats=2", *(f"tasks.{task}.max_length=24" for task in tasks)]
    monkeypatch.setattr(sys, "argv", [name, str(data), str(out), *overrides])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    asked = tasks[:1] if name == "question_answering" else tasks
    assert answers and all(list(answer) == asked for answer in answers)
    for answer in answers:
        for found in answer.values():
            assert found.get("prediction") or found.get("entities") is not None, found
    if name == "customer_service":
        best = answers[0]["reply"]["best"]
        assert len(best) == 3 and best[0]["text"] == answers[0]["reply"]["prediction"]
        assert best[0]["score"] >= best[1]["score"] and best[0]["text"].startswith("a ")
    found = read_json(out / "run" / "results.json")
    assert [task["name"] for task in found["tasks"]] == tasks
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 95


def captions(data: Path) -> None:
    for name, rows in (("train", 60), ("val", 8), ("test_2016_flickr", 8)):
        for language, first in (("en", "a"), ("de", "ein")):
            with gzip.open(data / f"{name}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write("".join(f"{first} {words(n)} {n}\n" for n in range(rows)))


def news(data: Path) -> None:
    rows = [f'"{n % 4 + 1}","{words(n)}","{words(n)} {n}, so it was"' for n in range(40)]
    (data / "test.csv").write_text("\n".join(rows) + "\n")


# EncoderDecoderModel says this each time that it computes a loss
@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")
@pytest.mark.parametrize(
    ("name", "prepare", "said"),
    [
        ("translation", captions, ("dense: bleu ", "nrefs:1")),
        ("headlines", news, ("dense: rouge_l ", "rouge_2 ")),
    ],
)
def test_an_application_that_writes_runs(
    name: str,
    prepare: Callable[[Path], None],
    said: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    prepare(data)
    if name == "headlines":
        tiny.save_host(tmp_path / "host")
        new_pair(NewPair(encoder=str(tmp_path / "host")), make_folder(out) / "host")
    overrides = ["train.max_steps=2", "train.precision=fp32", "task.max_target=8"]
    overrides += ["measure.repeats=2", "measure.budgets=[0.5]", "task.max_length=24"]
    monkeypatch.setattr(sys, "argv", [name, str(data), str(out), *overrides])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(answers) == 2 and all(isinstance(each["prediction"], str) for each in answers)
    assert all(words in printed for words in said)
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 95


@pytest.mark.parametrize("name", ALL)
def test_a_folder_without_the_data_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path), str(tmp_path / "out")])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_there_are_applications() -> None:
    assert set(ALL) == {*WRITERS, *WRITE}
