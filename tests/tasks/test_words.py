"""Words to guess: hidden ones, or the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from turnout import UserError
from turnout.tasks.base import IGNORED
from turnout.tasks.words import WordsConfig, WordsTask
from turnout.units.task_heads import HeadConfig, WordsHead

TEXTS = ["the film was very fine and warm", "a dull story", "Ann met Bob in Rome", "a film"]


def tokenizer() -> Any:
    made = tiny.tokenizer()
    made.mask_token = "[UNK]"
    return made


def task(folder: Path, **fields: Any) -> WordsTask:
    path = folder / "train.csv"
    path.write_text("\n".join(["text", *TEXTS]) + "\n")
    named = {"train": str(path), "validation": str(path), "max_length": 12}
    return WordsTask(WordsConfig(**{**named, **fields}))


def test_a_share_of_the_words_is_hidden_anew_each_epoch(tmp_path: Path) -> None:
    made = task(tmp_path, share=0.5)
    raw = made.load()["validation"]
    rows = made.encode(raw, tokenizer())
    whole = [tiny.tokenizer()(text)["input_ids"] for text in TEXTS]
    chosen = []
    for row, text in zip(rows, whole, strict=True):
        labels = np.array(row["labels"])
        asked = labels != IGNORED
        chosen.append(asked.sum())
        assert not asked[0] and not asked[-1]  # never the special ones
        assert (labels[asked] == np.array(text)[asked]).all()
        assert (np.array(row["input_ids"])[~asked] == np.array(text)[~asked]).all()
    assert chosen == [4, 2, 2, 1]
    again = made.encode(raw, tokenizer())
    assert again["input_ids"] == rows["input_ids"]
    seen = {tuple(made.vary(rows[0], epoch)["labels"]) for epoch in range(8)}
    assert len(seen) > 3
    assert made.vary(made.vary(rows[0], 3), 0) == rows[0]  # nothing is lost by hiding


def test_four_fifths_are_hidden_a_tenth_is_another_word(tmp_path: Path) -> None:
    made = task(tmp_path, share=0.99)
    row = made.encode(made.load()["validation"], tokenizer())[0]
    ids = np.concatenate([made.vary(row, epoch)["input_ids"][1:-1] for epoch in range(400)])
    text = np.tile(tiny.tokenizer()(TEXTS[0])["input_ids"][1:-1], 400)
    hidden = (ids == tiny.tokenizer().unk_token_id).mean()
    same = (ids == text).mean()
    assert 0.77 < hidden < 0.84 and 0.07 < same < 0.14


def test_next_words_are_labels_without_hiding(tmp_path: Path) -> None:
    made = task(tmp_path, guess="next")
    row = made.encode(made.load()["validation"], tokenizer())[1]
    assert row["labels"] == [*row["input_ids"][1:], IGNORED]
    assert made.vary(row, 5) == row
    (tmp_path / "new.txt").write_text("a film\n")
    (asked,) = made.encode(made.read(str(tmp_path / "new.txt")), tokenizer())["labels"]
    assert asked == [IGNORED, IGNORED, IGNORED, 0]


def test_a_text_file_is_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a film\n\nthe story\n")
    made = task(tmp_path, train=str(tmp_path / "train.txt"))
    assert sorted(made.load()["train"]["text"]) == ["a film", "the story"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="empty"):
        task(tmp_path, train=str(tmp_path / "empty.txt")).load()


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    made = task(tmp_path)
    with pytest.raises(UserError, match="guess: next"):
        made.encode(made.load()["validation"], tiny.tokenizer())


def test_only_places_with_labels_are_read() -> None:
    torch.manual_seed(0)
    head = WordsHead(HeadConfig(kind="words", width=1), 8, 11)
    torch.nn.init.constant_(head.scale, 0.5)
    rows, table = torch.randn(2, 4, 8), torch.randn(11, 8)
    labels = torch.tensor([[IGNORED, 3, IGNORED, 5], [7, IGNORED, IGNORED, IGNORED]])
    whole = head(rows, table).log_softmax(-1)
    found = head(rows, table, labels)
    for b, t in ((0, 1), (0, 3), (1, 0)):
        torch.testing.assert_close(found[b, t, 0], whole[b, t, labels[b, t]])
        assert found[b, t, 1] == whole[b, t].argmax()
        torch.testing.assert_close(found[b, t, 2], whole[b, t].max())
    assert (found[labels == IGNORED] == 0).all()
    expected = torch.nn.functional.cross_entropy(
        head(rows, table).flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    torch.testing.assert_close(head.loss(found, labels), expected)


def test_a_fresh_head_is_that_of_a_tied_language_model() -> None:
    head = WordsHead(HeadConfig(kind="words", width=1), 8, 11)
    rows, table = torch.randn(2, 4, 8), torch.randn(11, 8)
    assert torch.equal(head(rows, table), torch.nn.functional.linear(rows, table))


def test_answers_are_counted_and_described(tmp_path: Path) -> None:
    made = task(tmp_path)
    made.encode(made.load()["validation"], tokenizer())
    film, fine = tiny.WORDS.index("film"), tiny.WORDS.index("fine")
    logits = np.zeros((1, 3, 3))
    logits[0, 0], logits[0, 2] = (np.log(0.25), fine, np.log(0.5)), (np.log(0.5), film, np.log(0.5))
    found = made.predictions(logits, np.array([[film, IGNORED, film]]))
    report = made.report(found, [None])
    assert report["accuracy"] == 0.5 and report["words"] == 2
    assert report["perplexity"] == pytest.approx(8**0.5)
    words = made.describe({"text": "x"}, found[0])["prediction"]
    assert [each["word"] for each in words] == ["fine", "film"]
    assert words[0]["probability"] == pytest.approx(0.5)
