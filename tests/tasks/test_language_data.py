"""Documents out of files, windows out of documents, rows out of windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AutoTokenizer

from turnout import UserError
from turnout.tasks.language_data import Tokens, packed, read_documents, tokens_of, windows
from turnout.train.new_host import NewHost, new_host

TEXT = "one\ntwo\n\n\nthree\n \nfour\n"


@pytest.mark.parametrize(
    ("documents", "found"),
    [
        ("line", ["one", "two", "three", "four"]),
        ("blank-line", ["one\ntwo", "three", "four"]),
        ("file", ["one\ntwo\n\n\nthree\n \nfour"]),
    ],
)
def test_documents_of_a_text_file(documents: Any, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    assert read_documents(str(path), "train", "text", documents) == found


def test_documents_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a\\nb"}\n{"body": " "}\n{"body": "c"}\n')
    assert read_documents(str(path), "train", "body", "line") == ["a\nb", "c"]
    with pytest.raises(UserError, match="no column 'text'"):
        read_documents(str(path), "train", "text", "line")
    path.write_text('{"body": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: 'body' is 3; expected a text"):
        read_documents(str(path), "train", "body", "line")
    (tmp_path / "b.txt").write_text(" \n\t\n")
    with pytest.raises(UserError, match=r"b\.txt"):
        read_documents(str(tmp_path / "b.txt"), "train", "text", "line")


def document(size: int) -> Tokens:
    return Tokens(list(range(100, 100 + size)), [3 * (n + 1) for n in range(size)])


@pytest.mark.parametrize(("size", "step"), [(4, 3), (4, 2), (4, 1), (7, 3), (50, 49)])
@pytest.mark.parametrize("total", [1, 2, 4, 5, 11])
def test_each_token_but_the_first_is_judged_once(size: int, step: int, total: int) -> None:
    found = list(windows(document(total), size, step))
    judged = [label for window in found for label in window["labels"] if label != -100]
    assert judged == document(total).ids[1:]
    for window in found:
        assert len(window["input_ids"]) == len(window["labels"]) <= size
        assert window["labels"][0] == -100  # nothing stands before it
        pairs = zip(window["input_ids"], window["labels"], strict=True)
        assert all(label in (-100, token) for token, label in pairs)
    assert sum(window["bytes"] for window in found) == 3 * (total - 1)


def test_overlap_gives_tokens_more_to_go_on_from() -> None:
    found = list(windows(document(10), 6, 2))
    behind = [
        window["labels"].index(next(x for x in window["labels"] if x >= 0)) for window in found
    ]
    assert behind == [1, 4, 4]


def test_rows_are_filled_and_positions_begin_anew() -> None:
    pieces = [window for size in (3, 2, 4, 1, 6) for window in windows(document(size), 6, 5)]
    rows = packed(pieces, 6)
    assert [row["position_ids"] for row in rows] == [
        [0, 1, 2, 0, 1],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5],
    ]
    assert rows[0]["input_ids"] == [100, 101, 102, 100, 101]
    assert rows[0]["labels"] == [-100, 101, 102, -100, 101]


def test_bytes_are_those_of_the_text(tmp_path: Path) -> None:
    data = tiny.save_reviews(tmp_path)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    page = {
        "family": "llama",
        "config": small,
        "tokenizer": {"texts": [str(data["train"])], "vocabulary": 300},
    }
    out = new_host(NewHost.model_validate(page), tmp_path / "host")
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = ["a lovely café 电影 ", "of the", "\U0001f642"]
    for text, tokens in zip(texts, tokens_of(texts, tokenizer, ends=True), strict=True):
        assert tokens.ids[0] == tokenizer.bos_token_id
        assert tokens.ids[-1] == tokenizer.eos_token_id != tokens.ids[-2]
        assert len(tokens.ids) == len(tokens.text_bytes) and tokens.text_bytes[0] == 0
        assert tokens.text_bytes[-1] == len(text.encode())
        assert sum(w["bytes"] for w in windows(tokens, 4, 3)) == len(text.encode())


def test_the_end_is_put_where_the_tokenizer_puts_none() -> None:
    tokenizer = tiny.tokenizer()
    bare = tokens_of(["the film"], tokenizer, ends=True)[0]
    assert bare.ids == tokenizer("the film")["input_ids"]  # it knows no such token
    tokenizer.eos_token = "[PAD]"
    ended, open_ = (tokens_of(["the film"], tokenizer, ends)[0] for ends in (True, False))
    assert ended.ids == [*open_.ids, tokenizer.pad_token_id] == [*bare.ids, 0]
    assert ended.text_bytes[-1] == ended.text_bytes[-2] == 8
