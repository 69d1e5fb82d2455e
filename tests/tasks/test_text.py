from __future__ import annotations

import io
import types

import pytest

from turnout.errors import UserError
from turnout.tasks.text import read_lines


def test_only_line_feeds_end_a_line_and_a_mark_at_the_start_is_dropped(write):
    path = write(
        "a.txt", b"\xef\xbb\xbfone\x85\xe2\x80\xa8".replace(b"\x85", b"\xc2\x85") + b"\r\n\ntwo\n"
    )
    assert read_lines(path) == ["one\x85\u2028", "", "two"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(write, content):
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        read_lines(write("a.txt", content))


def test_invalid_utf8_names_the_line(write):
    with pytest.raises(UserError, match=r"a\.txt:3: not valid UTF-8 \(byte 0xe9\)"):
        read_lines(write("a.txt", b"one\ntwo\ncaf\xe9\n"))


def test_a_missing_file_offers_the_nearest(write):
    path = write("train.txt", "x")
    with pytest.raises(UserError, match=r"no such file; did you mean .*train\.txt"):
        read_lines(path.replace("train", "trian"))


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"one\ntwo")))
    assert read_lines("-") == ["one", "two"]
    with pytest.raises(UserError, match="standard input is empty"):
        read_lines("-")
