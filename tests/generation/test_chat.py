"""What a chat remembers, shows to the model, and does when told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turnout.errors import UserError
from turnout.generation import commands
from turnout.generation.chat import Chat, route_rows
from turnout.generation.history import History
from turnout.generation.prompting import Prompts, transcript
from turnout.generation.settings import WriteSettings
from turnout.generation.stored import Stored, shown_with
from turnout.generation.terminal import printable
from turnout.generation.writer import Writer

SHORT = WriteSettings(max_new_tokens=4, seed=0)
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def told(count: int, system: str = "") -> History:
    history = History(system)
    for turn in range(count):
        history.add("user", f"film {turn} the a")
        history.add("assistant", "good")
    return history


def test_a_transcript_goes_on_where_the_answer_begins() -> None:
    text = transcript("be good", told(1).turns, "and?")
    assert text == "System: be good\nUser: film 0 the a\nAssistant: good\nUser: and?\nAssistant:"


def test_the_oldest_turns_go_and_the_system_text_stays(writer: Writer) -> None:
    prompts = Prompts(writer)
    ids, notes = prompts.of(told(40, "warm witty"), "a story", "", 8)
    text = writer.tokenizer.decode(ids)
    assert len(ids) <= 64 - 8 and "warm witty" in text and "a story" in text
    assert len(notes) == 1 and "oldest" in notes[0]
    kept = [line for line in writer.encode("good") if line in ids]
    assert kept, "the newest turns are there"
    counted: list[str] = []
    encode = writer.encode

    def count(text: str, special: bool = True) -> list[int]:
        counted.append(text)
        return encode(text, special)

    writer.encode = count  # type: ignore[method-assign]
    prompts.of(told(4000, "warm witty"), "a story", "", 8)
    assert len(counted) < 20, "a long history costs no more than what is kept of it"


def test_a_message_beyond_the_context_is_cut(writer: Writer) -> None:
    ids, notes = Prompts(writer).of(told(3), "film " * 10_000 + "Rome", "", 8)
    assert len(ids) <= 56 and "message cut" in notes[0]
    assert "Rome" in writer.tokenizer.decode(ids)
    with pytest.raises(UserError, match="system text leaves no room"):
        Prompts(writer).of(History("film " * 60), "a", "", 8)


def test_a_template_is_used_and_may_lack_a_system_role(writer: Writer) -> None:
    writer.tokenizer.chat_template = TEMPLATE
    prompts = Prompts(writer)
    assert prompts.template and prompts.stops == ()
    ids = prompts.ids("witty", told(1).turns, "a story")
    assert ids[:1] != writer.encode("")[:1], "the template brings its own first tokens"
    rendered = prompts._templated("witty", [{"role": "user", "content": "a"}])
    assert rendered == "<user> witty\n\na <assistant> "
    writer.tokenizer.chat_template = "{{ raise_exception('broken') }}"
    with pytest.raises(UserError, match="chat template fails: broken"):
        prompts.ids("", [], "a")


def test_answers_are_kept_and_taken_back(writer: Writer, tmp_path: Path) -> None:
    chat = Chat(writer, SHORT, history_file=tmp_path / "talk.json")
    first, _ = chat.answer("the film")
    chat.again()
    assert len(chat.history.turns) == 2
    page = json.loads((tmp_path / "talk.json").read_text())
    assert page["turns"][0]["text"] == "the film" and page["turns"][1]["facts"]["tokens"]
    chat.set(seed=0)
    assert chat.again()[0].text != first.text  # another draw, seed or not
    other = Chat(writer, SHORT, history_file=tmp_path / "talk.json")
    assert other.history.turns == chat.history.turns
    other.reset()
    assert json.loads((tmp_path / "talk.json").read_text())["turns"] == []
    with pytest.raises(UserError, match="nothing was answered"):
        other.again()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"talk.json:1:2: not valid JSON"),
        ("[]", "not the history of a chat"),
        ('{"format": 2, "system": "", "turns": []}', "format 2; this version reads 1"),
        ('{"format": 1, "system": "", "turns": [{"role": "cat", "text": ""}]}', "turns.0.role"),
        ('{"format": 1, "system": "", "turns": [{"role": "user", "text": ""}]}', "one after"),
    ],
)
def test_a_damaged_history_is_refused_and_kept(
    writer: Writer, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        Chat(writer, SHORT, history_file=file)
    assert file.read_text() == text


def test_commands(writer: Writer, tmp_path: Path) -> None:
    chat = Chat(writer, SHORT)

    def say(line: str) -> str:
        name, rest = commands.split(line)
        return commands.COMMANDS[name].does(chat, rest)

    assert all(f"/{name}" in say("/help") for name in commands.COMMANDS)
    assert say("/budget 0.5") == "budget: 0.5" and chat.settings.budget == 0.5
    assert say("/budget off") == "budget: as the model has it"
    for line, said in (
        ("/budget 0", "budget: found 0.0"),
        ("/budget much", "give a number"),
        ("/noise 1", "without noise"),
        ("/seed -1", "whole number"),
        ("/route", "nothing was answered"),
        ("/save", "name a file"),
        (f"/load {tmp_path / 'no.json'}", "no such file"),
        ("/tempratur 1", "did you mean /temperature"),
        ("/xyzzy", r"unknown command /xyzzy; /help"),
    ):
        with pytest.raises(UserError, match=said):
            say(line)
    assert chat.settings.budget is None, "a wrong value changes nothing"
    chat.answer("the film")
    assert "decoder.2.layer" in say("/route")
    assert say(f"/save {tmp_path / 'a.json'}").startswith("saved")
    assert say("/history").startswith("user: the film\nassistant: ")
    say("/reset")
    assert say("/history") == "nothing was said yet"
    assert say(f"/load {tmp_path / 'a.json'}") == "1 exchange(s) loaded"
    assert say("/system warm") == "system: warm" and say("/system off") == "system: (none)"
    assert not commands.is_command("//no") and commands.is_command("/yes")


def test_rows_of_a_route() -> None:
    text = route_rows({"decoder.0.layer": 1.0, "decoder.10.layer": 0.25}, width=4)
    assert text.splitlines()[1:] == [
        "decoder.0.layer   ####  100.0 %",
        "decoder.10.layer  #...   25.0 %",
    ]


def test_stored_answers(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = [
        {"question": "Where is the station?", "answer": "In Main Street."},
        {"question": "When does the train leave?", "answer": "At noon."},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = Stored.read(str(file))
    (found,) = stored.nearest("when will my train leave", most=1)
    assert found.answer == "At noon." and 0.2 < found.likeness < 1
    assert stored.nearest("zebra") == [] and shown_with([]) == ""
    assert "When does the train leave? At noon." in shown_with([found])
    file.write_text('{"question": 1, "answer": "x"}\n')
    with pytest.raises(UserError, match="expected a text"):
        Stored.read(str(file))
    file.write_text('{"q": "a"}\n')
    with pytest.raises(UserError, match="no column 'question'"):
        Stored.read(str(file))
    with pytest.raises(UserError, match="hold no word"):
        Stored(["?"], ["a"])


def test_stored_answers_are_read_by_the_model(writer: Writer) -> None:
    stored = Stored(["who met Ann"], ["Bob met Ann"])
    chat = Chat(writer, SHORT, stored=stored)
    prompts: list[Any] = []
    write = writer.write
    writer.write = lambda given, *a, **k: prompts.append(given[0]) or write(given, *a, **k)  # type: ignore
    chat.answer("who met Ann")
    assert writer.encode("Bob met Ann", special=False) in [
        prompts[0][at : at + 3] for at in range(len(prompts[0]))
    ]


def test_nothing_steers_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\u202e") == "a[2Jb\n\tc"
