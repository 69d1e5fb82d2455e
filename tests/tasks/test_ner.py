from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score

from turnout.errors import UserError
from turnout.tasks import NERConfig, NERTask

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
IOB1 = "Peter I-PER\nBlackburn I-PER\nin O\nBrussels I-LOC\nParis B-LOC\n\nunbelievably O\nlong O\n"
IDS = st.lists(st.integers(0, 4), min_size=1, max_size=8)


def task(train: str = "a", labels=LABELS, **fields) -> NERTask:
    return NERTask(NERConfig(train=train, **fields), labels)


def test_load_makes_bio_and_both_labels_of_each_type(write):
    path = write("eng.train", IOB1)
    one = task(path, None, validation=path)
    rows = one.load()["train"]
    assert one.labels == LABELS
    assert rows[0]["tags"] == ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    assert one.references(rows) == [[3, 4, 0, 1, 1], [0, 0]]


def test_an_entity_type_unseen_in_training(write):
    other = write("b", "so O\n\nthe O\nEU I-ORG\n")
    with pytest.raises(
        UserError, match=r"b:4: label 'B-ORG' does not occur in training; known labels"
    ):
        task(write("a", IOB1), None, validation=other).load()


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("a O\n", {}, "every tag is 'O'"),
        ("a O\n\nb I-X\n", {"scheme": "BIO"}, r"a:3: 'I-X' begins an entity"),
        ("a O\nb S-X\n", {}, r"a:2: tag 'S-X' is not 'O'"),
        ("a O\nb\n", {}, r"a:2: found 1 columns, expected 2"),
        ("", {}, "a is empty"),
        ("a O\n", {"token_column": "tokens"}, "numbered columns"),
    ],
)
def test_bad_files(write, content, fields, message):
    with pytest.raises(UserError, match=message):
        task(write("a", content), None, **fields).load()


def test_each_word_is_labelled_once_on_its_first_sub_token(any_tokenizer, write):
    one = task(write("a", IOB1), validation=write("b", IOB1))
    rows = one.load()["train"]
    encoded = one.encode(rows, any_tokenizer)
    assert encoded.cache_files == []
    for row, gold in zip(encoded, one.references(rows), strict=True):
        assert [label for label in row["labels"] if label != -100] == gold
        assert row["word_count"] == len(gold)
        words = any_tokenizer(rows[0]["tokens"], is_split_into_words=True).word_ids()
    first = [i for i, word in enumerate(words) if word is not None and word != words[i - 1]]
    assert [i for i, label in enumerate(encoded[0]["labels"]) if label != -100] == first


def test_words_that_were_cut_count_as_outside(any_tokenizer, write):
    one = task(write("a", IOB1), validation=write("b", IOB1), max_length=4)
    rows = one.load()["train"]
    encoded = one.encode(rows, any_tokenizer)
    batch = one.collator(any_tokenizer)(list(encoded))
    assert "word_count" not in batch
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 5).to(torch.bfloat16)
    found, gold = one.predictions(logits, batch["labels"]), one.references(rows)
    seen = len(found[0])
    assert 0 < seen < 5 and found[0] == gold[0][:seen]
    right, predicted, all_gold = one.counts(found, gold).sum(0)
    assert all_gold == 3 and right < predicted + 1 <= 3
    report = one.report(found, gold)
    assert report["tokens"]["weighted avg"]["support"] == 7
    assert one.describe(rows[0], found[0])["cut_words"] == 5 - seen
    assert len(one.describe(rows[0], found[0])["tags"]) == 5


def test_a_word_without_sub_tokens_keeps_its_place(any_tokenizer):
    one = task()
    words = [["Peter", "\u200b\x01", "in", "Brussels"], ["a", "film"], []]
    encoded = one.encode(datasets.Dataset.from_dict({"tokens": words}), any_tokenizer)
    marks = [sum(label != -100 for label in row) for row in encoded["labels"]]
    assert marks == [4, 2, 0] == encoded["word_count"][:]


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_the_headline_is_seqevals_micro_f1(pairs):
    one = task()
    gold = [row for row, _ in pairs]
    found = [row[: len(like)] for like, row in pairs]
    names = one._names(found, gold)
    total = one.counts(found, gold).sum(0)
    expected = f1_score(one._names(gold), names, zero_division=0) if total[1:].any() else 0.0
    assert one.score(total) == pytest.approx(expected)


def test_iob1_gold_scores_as_seqeval_scores_it(write):
    path = write("a", IOB1)
    one = task(path, validation=path)
    gold = one.references(one.load()["train"])
    found = [[3, 4, 0, 1, 2], [1, 0]]
    raw = [["I-PER", "I-PER", "O", "I-LOC", "B-LOC"], ["O", "O"]]
    total = one.counts(found, gold).sum(0)
    assert total.tolist() == [1, 3, 3]
    assert one.score(total) == pytest.approx(f1_score(raw, one._names(found)))


def test_report_is_json_even_without_entities():
    one = task()
    report = json.loads(json.dumps(one.report([[3, 4], [0]], [[3, 4], [1]])))
    assert report["entities"]["PER"]["f1-score"] == 1.0
    assert report["entities"]["micro avg"]["recall"] == 0.5
    assert report["tokens"]["O"]["precision"] == 0.0
    assert one.report([[0]], [[0]])["f1"] == 0.0


def test_read_and_describe(write):
    one = task()
    rows = one.read(write("a.txt", "Peter Blackburn in Brussels\n"))
    assert rows[0]["tokens"] == ["Peter", "Blackburn", "in", "Brussels"]
    found = one.describe(rows[0], [3, 4, 0], np.full((3, 5), 0.2))
    assert found["entities"] == [{"type": "PER", "start": 0, "end": 2, "text": "Peter Blackburn"}]
    assert found["tags"] == ["B-PER", "I-PER", "O", "O"] and found["cut_words"] == 1
    assert json.loads(json.dumps(found))["confidence"] == [0.2] * 3
    assert one.read(write("b.conll", "Peter NNP\nin IN\n"))["tokens"][:] == [["Peter", "in"]]


def test_predictions_need_the_mask():
    with pytest.raises(ValueError, match="first sub-token"):
        task().predictions(np.zeros((1, 2, 5)))
