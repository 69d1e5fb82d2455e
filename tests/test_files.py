from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from turnout.errors import UserError
from turnout.files import (
    atomic_dir,
    make_folder,
    read_bytes,
    read_json,
    require_file,
    write_json,
    write_text,
)


def test_json_round_trip_and_no_leftovers(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    write_json(tmp_path / "a.json", {"é": 2})
    assert read_json(tmp_path / "a.json") == {"é": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1


def test_write_into_an_absent_folder_names_it(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*no/a\.txt: No such file.*folder .*no"):
        write_text(tmp_path / "no" / "a.txt", "x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_user_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*run: No space left"),
        atomic_dir(tmp_path / "run") as temp,
        open("/dev/full", "w") as full,
    ):
        (temp / "weights").write_text("x")
        full.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_read_json_says_where(tmp_path):
    (tmp_path / "a.json").write_text('{\n "a": nope}')
    with pytest.raises(UserError, match=r"a\.json:2:7: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b'"\xff"')
    with pytest.raises(UserError, match=r"b\.json is not UTF-8"):
        read_json(tmp_path / "b.json")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no /proc here")
def test_a_file_that_cannot_be_read_is_told():
    with pytest.raises(UserError, match="cannot read /proc/self/mem"):
        read_bytes("/proc/self/mem")


def test_a_missing_file_offers_the_nearest_names(tmp_path):
    (tmp_path / "train.csv").write_text("x")
    with pytest.raises(UserError, match=r"no such file; did you mean '.*train\.csv'\?"):
        require_file(tmp_path / "trian.csv")
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        require_file(tmp_path / "no" / "train.csv")
    with pytest.raises(UserError, match="is a folder"):
        require_file(tmp_path)


def test_atomic_dir_replaces_a_folder_whole(tmp_path):
    for content in ("old", "new"):
        with atomic_dir(tmp_path / "run") as temp:
            (temp / content).write_text(content)
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["new"]


def test_atomic_dir_keeps_the_old_folder_when_the_body_fails(tmp_path):
    with atomic_dir(tmp_path / "run") as temp:
        (temp / "old").write_text("old")
    with pytest.raises(KeyError), atomic_dir(tmp_path / "run") as temp:
        (temp / "new").write_text("new")
        raise KeyError("body")
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["old"]


def test_atomic_dir_turns_other_reports_of_a_full_disk_into_a_user_error(tmp_path):
    with pytest.raises(UserError, match="No space left"), atomic_dir(tmp_path / "run"):
        raise RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")


def test_atomic_dir_will_not_replace_a_file(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="is a file"), atomic_dir(tmp_path / "run"):
        pass


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a" / "b")
    assert made.is_dir() and make_folder(made) == made
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "below")
