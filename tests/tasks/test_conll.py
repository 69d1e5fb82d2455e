from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from turnout.errors import UserError
from turnout.tasks.conll import read_conll, spans, to_bio

TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=12)


def test_sentences_lines_and_document_marks(write):
    path = write("a", "-DOCSTART- -X- O\n\nEU  NNP I-ORG\n. . O\n\n\nPeter\tNNP\tI-PER\n")
    found = read_conll(path, 0, -1)
    assert found.tokens == [["EU", "."], ["Peter"]]
    assert found.tags == [["I-ORG", "O"], ["I-PER"]]
    assert found.lines == [3, 7]


def test_a_token_may_hold_a_space_that_is_no_blank(write):
    assert read_conll(write("a", "10\u00a0000 O\n"), 0, -1).tokens == [["10\u00a0000"]]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("EU NNP O\n. O\n", (0, -1), r"a\.conll:2: found 2 columns, expected 3 \(as in line 1\)"),
        ("EU NNP O\n", (0, 5), r"a\.conll:1: found 3 columns, so `label_column: 5` does not exist"),
        ("EU\n", (0, -1), r"a\.conll:1: found 1 columns: the token and the label"),
        ("\tO\n", (0, -1), r"a\.conll:1: the token \(column 0\) is empty"),
        ("-DOCSTART- O\n", (0, -1), r"a\.conll has no sentences"),
        ("", (0, -1), r"a\.conll is empty"),
        (b"EU O\ncaf\xe9 O\n", (0, -1), r"a\.conll:2: not valid UTF-8"),
    ],
)
def test_bad_files(write, content, columns, message):
    with pytest.raises(UserError, match=message):
        read_conll(write("a.conll", content), *columns)


def test_schemes():
    assert to_bio(["I-X", "I-X", "B-X", "I-Y", "O"]) == ["B-X", "I-X", "B-X", "B-Y", "O"]
    assert to_bio(["I-X", "B-X"], "IOB1") == ["B-X", "B-X"]
    with pytest.raises(ValueError, match="in BIO must begin"):
        to_bio(["O", "I-X"], "BIO")
    with pytest.raises(ValueError, match="as 'B-' must in IOB1"):
        to_bio(["O", "B-X"], "IOB1")
    for tag in ("E-X", "X", "B-", "", "I"):
        with pytest.raises(ValueError, match="is not 'O'"):
            to_bio([tag])


@given(TAGS)
def test_spans_are_those_of_seqeval_before_and_after_to_bio(tags):
    expected = {(kind, start, end + 1) for kind, start, end in get_entities(tags)}
    assert spans(tags) == expected == spans(to_bio(tags))
    assert to_bio(to_bio(tags), "BIO") == to_bio(tags)
