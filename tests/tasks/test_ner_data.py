from __future__ import annotations

from pathlib import Path

import pytest

from turnout.errors import UserError
from turnout.tasks.ner_data import cut_words, read_tagged, read_words


def test_json_lines_with_usual_or_given_column_names(write):
    path = write("a.jsonl", '{"tokens":["a","b"],"ner_tags":["O","I-X"],"mine":["O","O"]}\n')
    assert read_tagged(path, "train", 0, -1, "auto").tags == [["O", "B-X"]]
    assert read_tagged(path, "train", "tokens", "mine", "auto").tags == [["O", "O"]]
    assert read_words(path, 0) == [["a", "b"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tokens":["a"],"tags":["O","O"]}\n', r"a\.jsonl:1: found 2 tags for 1 words"),
        ('{"tokens":["a"],"tags":["E-X"]}\n', r"a\.jsonl:1, word 1: tag 'E-X'"),
        ('{"tokens":"a","tags":["O"]}\n', r"a\.jsonl:1: 'tokens' is 'a'; expected a list of texts"),
        ('{"tokens":["a"],"tags":[3]}\n', r"a\.jsonl:1: 'tags' is \[3\]; expected a list of texts"),
        ('{"words":["a"],"tags":["O"]}\n', "no column 'tokens'; its columns are 'words', 'tags'"),
    ],
)
def test_bad_json_lines(write, content, message):
    with pytest.raises(UserError, match=message):
        read_tagged(write("a.jsonl", content), "train", 0, -1, "auto")


def test_csv_has_no_place_for_words(write):
    with pytest.raises(UserError, match=r"CoNLL columns, \.jsonl or \.parquet, not \.csv"):
        read_tagged(write("a.csv", "a,O\n"), "train", 0, -1, "auto")


@pytest.mark.parametrize(
    "content", ["-DOCSTART- O\n\nEU B-ORG\n", "EU B-ORG\nsays O\n\nBonn B-LOC\nis O\nhere O\n"]
)
def test_columns_under_a_name_for_texts_are_refused(write, content):
    path = write("test.txt", content)
    with pytest.raises(UserError, match=r"holds CoNLL columns.*\.conll"):
        read_words(path, 0)
    assert read_words(write("test.conll", content), 0)[-1][0] in ("EU", "Bonn")
    assert read_words(write("texts.txt", "one text\nof two words\n"), 0) == [
        ["one", "text"],
        ["of", "two", "words"],
    ]


def test_texts_are_cut_into_words(tmp_path: Path) -> None:
    text = "Ann's \"friends\" met in the U.S. (or Rome), didn't they? Yes -- 3.5%."
    expected = ["Ann", "'s", '"', "friends", '"', "met", "in", "the", "U.S.", "(", "or", "Rome"]
    expected += [")", ",", "didn't", "they", "?", "Yes", "-", "-", "3.5", "%", "."]
    assert cut_words(text) == expected
    assert cut_words("हिन्दी में, cafe\u0301. It costs 3.5.") == [
        *("हिन्दी", "में", ",", "cafe\u0301", ".", "It", "costs", "3.5", ".")
    ]
    (tmp_path / "texts.csv").write_text('text\n"Rome, again."\n')
    assert read_words(str(tmp_path / "texts.csv"), 0) == [["Rome", ",", "again", "."]]
    (tmp_path / "texts.jsonl").write_text('{"text": "in Rome."}\n')
    assert read_words(str(tmp_path / "texts.jsonl"), 0) == [["in", "Rome", "."]]
