"""A chat in a real terminal: what is typed, what is answered, and what is left on disk."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from .writing_models import save_routed

FACTS = r"\[\d+ tokens, [\d.]+ s, \d+ % of the routed work[^\]]*\]"
READY = r"you> $"


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Any]:
    # a long context and no end token: an answer takes long enough to be interrupted
    folder = save_routed(tmp_path / "model", max_position_embeddings=4096, eos_token_id=None)
    (tmp_path / "answers.csv").write_text("question,answer\nwho met Ann,Bob met Ann in Rome\n")
    command = ["-m", "turnout", "chat", str(folder), "--history", str(tmp_path / "talk.json")]
    command += ["--answers", str(tmp_path / "answers.csv"), "--max-tokens", "8", "--seed", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    child = pexpect.spawn(
        sys.executable, command, timeout=120, env=environment, dimensions=(24, 200)
    )
    yield child
    child.close(force=True)


def say(child: Any, line: bytes, *expected: str) -> str:
    """Type a line; what was printed up to the next prompt, which must show all that is expected."""
    child.send(line + b"\r")
    child.expect(READY)
    shown = child.before.decode("utf-8", "replace")
    for each in expected:
        assert re.search(each, shown), f"{line!r}: {each!r} is not in {shown!r}"
    return shown


def type_slowly(child: Any, text: bytes) -> None:
    """A terminal takes some kilobytes at a time, and echoes them."""
    for first in range(0, len(text), 1000):
        child.send(text[first : first + 1000])
        try:
            child.read_nonblocking(100_000, timeout=0.05)
        except pexpect.TIMEOUT:
            continue


def test_ten_turns_in_a_terminal(talk: Any, tmp_path: Path) -> None:
    talk.expect(READY)
    say(talk, b"the film", r"model> \S", FACTS)  # 1
    say(talk, b"/route", r"decoder\.0\.layer +#", r"\d %")
    say(talk, b"/budget 0.5", r"budget: 0\.5")
    say(talk, b"a story", FACTS)  # 2
    say(talk, b"/budget 5", "error: budget: found 5")
    say(talk, b"/noise 1", "error: noise: .*without noise")
    say(talk, b"/regenrate", "unknown command /regenrate; did you mean /regenerate")
    say(talk, b"/regenerate", FACTS)
    say(talk, b"who met Ann", FACTS)  # 3, with a stored answer
    say(talk, b"")
    say(talk, b"\xff\xfe caf\xc3 film", FACTS)  # 4: not UTF-8
    say(talk, b"/system a good story", "system: a good story")
    say(talk, "film \u00e9\u4e2d".encode(), FACTS)  # 5
    say(talk, b"/temperature 0.5", r"temperature: 0\.5")
    say(talk, b"/top-p 0.9", r"top_p: 0\.9")
    say(talk, b"/seed off", "seed: off")
    say(talk, b"//help", FACTS)  # 6: a message, not a command
    say(talk, f"/save {tmp_path / 'copy.json'}".encode(), "saved: ")
    type_slowly(talk, b"film " * 10_000)  # 7: 50,000 characters
    say(talk, b"", "note: message cut to its last", FACTS)
    say(talk, b"/history", "user: the film", "assistant: ")
    say(talk, b"a film", FACTS)  # 8
    say(talk, f"/load {tmp_path / 'copy.json'}".encode(), r"6 exchange\(s\) loaded")
    say(talk, b"Bob in Oslo", FACTS)  # 9
    say(talk, b"Cem in Lima", FACTS)  # 10
    talk.send(b"/quit\r")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0
    page = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    asked = [turn["text"] for turn in page["turns"] if turn["role"] == "user"]
    assert asked[:2] == ["the film", "a story"] and asked[-2:] == ["Bob in Oslo", "Cem in Lima"]
    assert "film" in asked[3] and "\ufffd" in asked[3]
    assert page["system"] == "a good story"
    shown = [turn["shown"] for turn in page["turns"] if turn["text"] == "who met Ann"]
    assert shown == ["Known answers:\n- who met Ann Bob met Ann in Rome"]
    assert all(turn["facts"]["tokens"] for turn in page["turns"] if turn["role"] == "assistant")
    assert not list(tmp_path.glob("*.tmp"))


def end_by_interrupt(child: Any) -> None:
    """Ctrl-C at the prompt ends the chat. One that comes in the instant between the prompt and
    readline's wait for a key is noticed with the next one, as in any program that reads lines."""
    for _ in range(5):
        child.sendintr()
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=20) == 0:
            return
    raise AssertionError("the chat goes on after Ctrl-C at the prompt")


def test_an_interrupt_keeps_what_was_written(tmp_path: Path) -> None:
    folder = save_routed(tmp_path / "model", max_position_embeddings=65536, eos_token_id=None)
    command = ["-m", "turnout", "chat", str(folder), "--history", str(tmp_path / "talk.json")]
    child = pexpect.spawn(
        sys.executable,
        [*command, "--max-tokens", "30000"],
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"},
    )
    child.expect(READY)
    child.send(b"the film\r")
    child.expect(r"model> (\S+ \S+ \S+)")
    child.sendintr()
    child.expect(r"interrupted\]")
    child.expect(READY)
    end_by_interrupt(child)
    child.close()
    assert child.exitstatus == 0
    (question, answer) = json.loads((tmp_path / "talk.json").read_text())["turns"]
    assert question["text"] == "the film"
    assert answer["facts"]["stop"] == "interrupted"
    assert 3 <= answer["facts"]["tokens"] < 30000 and len(answer["text"].split()) >= 3
