from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from turnout.errors import UserError
from turnout.tasks import ClassificationConfig, ClassificationTask, NERConfig, TaskConfig

ROWS = "text,label,domain\n" + "".join(
    f"film {i} is fine,{'good' if i % 3 else 'bad'},m\n" for i in range(20)
)


def task(train: str, **fields) -> ClassificationTask:
    return ClassificationTask(ClassificationConfig(train=train, **fields))


def test_the_kind_selects_the_config():
    adapter = TypeAdapter(TaskConfig)
    assert isinstance(adapter.validate_python({"kind": "ner", "train": "a"}), NERConfig)
    config = adapter.validate_python({"kind": "classification", "train": "a"})
    assert adapter.validate_json(adapter.dump_json(config)) == config
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python({"kind": "ner", "train": "a", "text": "b"})


def test_load_sets_validation_apart_and_repeats_itself(write):
    path = write("a.csv", ROWS)
    first, again = task(path).load(), task(path).load()
    assert {key: len(rows) for key, rows in first.items()} == {"train": 18, "validation": 2}
    assert first["train"][:] == again["train"][:]
    assert not set(first["train"]["text"]) & set(first["validation"]["text"])
    assert first["train"].column_names == ["text", "label", "domain"]
    other = task(path, seed=1, max_train=5).load()
    assert len(other["train"]) == 5
    assert other["validation"][:] != first["validation"][:]


def test_named_files_keep_their_order(write):
    path = write("a.csv", ROWS)
    found = task(path, validation=path, test=path).load()
    assert found["train"][:] == found["validation"][:] == found["test"][:]


def test_labels_sort_as_numbers_if_all_are(write):
    one = task(write("a.csv", "text,label\na,10\nb,9\nc,-1\n"), validation_share=0.3)
    one.load()
    assert one.labels == ["-1", "9", "10"]
    one = task(write("a.jsonl", '{"text":"a","label":true}\n{"text":"b","label":false}\n'))
    one.load()
    assert one.labels == ["False", "True"]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.csv", "", {}, r"a\.csv is empty"),
        (
            "a.csv",
            "sentence,label\na,b\n",
            {},
            "no column 'text'; its columns are 'sentence', 'label'",
        ),
        ("a.csv", "text,y\na,b\n", {}, "no column 'label'; its columns are 'text', 'y'"),
        ("a.csv", "text,label\na,b\n", {"text_pair": "other"}, "no column 'other'"),
        ("a.csv", "text,label\na,b\nc,\n", {}, r"a\.csv:3: the label is missing"),
        ("a.csv", "text,label\na,b\nc,b\n", {}, "every row has the label 'b'; at least two"),
        ("a.csv", b"text,label\na,b\nc\xff,d\n", {}, r"a\.csv:3: not valid UTF-8"),
        ("a.csv", "text,label\na,b\nc,d,e\n", {}, r"a\.csv:3: found 3 columns, expected 2"),
        (
            "a.jsonl",
            '{"text":"a","label":"b"}\n{"text":3,"label":"b"}\n',
            {},
            r"a\.jsonl:2: 'text' is 3",
        ),
        ("a.jsonl", '{"text":"a","label":0.5}\n', {}, r"a\.jsonl:1: label 0\.5 is a float"),
    ],
)
def test_bad_files(write, name, content, fields, message):
    with pytest.raises(UserError, match=message):
        task(write(name, content), **fields).load()


def test_a_missing_file_offers_the_nearest(write):
    path = write("train.csv", ROWS)
    with pytest.raises(UserError, match=r"no such file; did you mean .*train\.csv"):
        task(path.replace("train", "trian")).load()


def test_one_row_is_too_few_to_set_any_apart(write):
    one = ClassificationTask(
        ClassificationConfig(train=write("a.csv", "text,label\na,b\n")), ["b", "c"]
    )
    with pytest.raises(UserError, match=r"has 1 row\(s\): too few"):
        one.load()


def test_a_label_unseen_in_training(write):
    train, other = write("a.csv", ROWS), write("b.csv", "text,label\nx,good\ny,ugly\n")
    message = r"b\.csv:3: label 'ugly' does not occur in training; known labels: 'bad', 'good'"
    with pytest.raises(UserError, match=message):
        task(train, test=other).load()


def test_encode_collate_predict(write, any_tokenizer):
    content = "title,text,label\na,good film,x\na,bad film that is unbelievably long,y\na,b,x\n"
    one = task(write("a.csv", content), text=["title", "text"], max_length=8)
    rows = one.load()["train"]
    encoded = one.encode(rows, any_tokenizer)
    expected = any_tokenizer(f"{rows[0]['title']} {rows[0]['text']}", truncation=True, max_length=8)
    assert encoded[0]["input_ids"] == expected["input_ids"]
    assert max(map(len, encoded["input_ids"])) <= 8
    assert encoded.cache_files == []
    batch = one.collator(any_tokenizer)([{**row, "word": "dropped"} for row in encoded])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["labels"].tolist() == one.references(rows).tolist()
    logits = torch.eye(2, dtype=torch.bfloat16, requires_grad=True)
    assert one.predictions(logits).tolist() == [0, 1]


def test_pairs_are_told_apart(write, any_tokenizer):
    one = task(write("a.csv", "a,b,label\nx,y,0\nz,w,1\n"), text="a", text_pair="b")
    encoded = one.encode(one.load()["train"], any_tokenizer)
    assert set(encoded[0]["token_type_ids"]) == {0, 1}


def test_max_length_beyond_the_model(write, any_tokenizer):
    one = task(write("a.csv", ROWS), max_length=513)
    with pytest.raises(UserError, match=r"max_length: 513.*at most 512"):
        one.encode(one.load()["train"], any_tokenizer)


def test_metrics(write):
    one = ClassificationTask(ClassificationConfig(train="a"), ["x", "y", "z"])
    counts = one.counts(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert counts.tolist() == [[1, 1], [1, 1], [0, 1]]
    assert one.score(counts.sum(0)) == pytest.approx(2 / 3)
    report = json.loads(json.dumps(one.report(np.array([0, 1, 1]), np.array([0, 1, 0]))))
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["classes"]["x"]["recall"] == 0.5
    assert report["classes"]["z"]["support"] == 0
    assert report["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_read_needs_no_label(write, any_tokenizer):
    one = ClassificationTask(ClassificationConfig(train="a"), ["x", "y"])
    rows = one.read(write("a.csv", "text,label\nhello,unknown\n"))
    assert rows[:] == {"text": ["hello"]}
    assert "labels" not in one.encode(rows, any_tokenizer).column_names
    rows = one.read(write("a.txt", "one\n\ntwo\n"))
    assert rows["text"] == ["one", "", "two"]
    found = one.describe(rows[0], np.int64(1), torch.tensor([0.25, 0.75]))
    assert json.loads(json.dumps(found)) == {
        "text": "one",
        "prediction": "y",
        "probabilities": {"x": 0.25, "y": 0.75},
    }


def test_read_a_file_without_header_with_or_without_its_labels(write):
    config = ClassificationConfig(train="a", columns=["text", "label"], quoting=False)
    one = ClassificationTask(config, ["x", "y"])
    assert one.read(write("a.tsv", "hello\tx\n"))[:] == {"text": ["hello"]}
    assert one.read(write("a.tsv", "hello\n"))[:] == {"text": ["hello"]}


def test_plain_lines_cannot_fill_two_columns(write):
    one = ClassificationTask(ClassificationConfig(train="a", text=["title", "text"]), ["x", "y"])
    with pytest.raises(UserError, match=r"one text a line, but this task reads .*'title', 'text'"):
        one.read(write("a.txt", "one\n"))
