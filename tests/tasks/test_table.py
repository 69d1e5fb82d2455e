from __future__ import annotations

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from turnout.errors import UserError
from turnout.tasks.table import is_hub_name, read_hub, read_table


def test_quoted_fields_may_hold_line_ends_and_lines_are_counted_right(write):
    table = read_table(write("a.csv", 'text,label\r\n"one,\r\n ""two""",x\r\n\r\nthree,y\r\n'))
    assert table.columns == {"text": ['one,\n "two"', "three"], "label": ["x", "y"]}
    assert [table.at(row).rsplit(":")[-1] for row in range(2)] == ["2", "5"]


def test_quote_marks_as_plain_text(write):
    content = 'sentence\tlabel\n"open\t0\nit\'s "so" so\t1\n'
    table = read_table(write("a.tsv", content), quoting=False)
    assert table.columns["sentence"] == ['"open', 'it\'s "so" so']
    with pytest.raises(UserError, match=r"a\.tsv:2: .*`quoting: false`"):
        read_table(write("a.tsv", content))


def test_columns_name_those_of_a_file_without_a_header(write):
    table = read_table(write("a.tsv", "good\tyes\n"), columns=["text", "label"])
    assert table.columns == {"text": ["good"], "label": ["yes"]}


@pytest.mark.parametrize("quoting", [True, False])
def test_a_row_of_another_width(write, quoting):
    message = r"a\.csv:3: found 3 columns, expected 2 \('text', 'label'\)"
    with pytest.raises(UserError, match=message):
        read_table(write("a.csv", "text,label\na,b\na,b,c\n"), quoting=quoting)


def test_a_missing_column_lists_those_that_exist(write):
    table = read_table(write("a.csv", "sentence,label\na,b\n"))
    with pytest.raises(UserError, match="no column 'text'; its columns are 'sentence', 'label'"):
        table.require("text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.parquet", "", "a.parquet is empty"),
        ("a.parquet", "no", "a.parquet is not a Parquet file"),
        ("a.csv", "text,label\n", "a.csv has no rows"),
        ("a.csv", "text,text\na,b\n", "a column name occurs twice"),
        ("a.xlsx", "x", r"unknown kind of file '.xlsx'; known are .csv"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a\.jsonl:2:7: not valid JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: found a JSON list, expected an object"),
        ("a.csv", b"text,label\na,b\n\xff,b\n", r"a\.csv:3: not valid UTF-8"),
    ],
)
def test_bad_files(write, name, content, message):
    with pytest.raises(UserError, match=message):
        read_table(write(name, content))


def test_json_lines_and_parquet(write, tmp_path):
    table = read_table(write("a.jsonl", '{"text": "a", "n": 1}\n\n{"text": "b"}\n'))
    assert table.columns == {"text": ["a", "b"], "n": [1, None]}
    assert table.at(1).endswith("a.jsonl:3")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    table = read_table(str(tmp_path / "a.parquet"))
    assert table.dataset()[0] == {"text": "a"}
    assert table.at(0).endswith("a.parquet, row 1")


def test_a_column_of_mixed_types(write):
    table = read_table(write("a.jsonl", '{"n": 1}\n{"n": "one"}\n'))
    with pytest.raises(UserError, match="column 'n' mixes types"):
        table.dataset()


def test_what_may_be_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("ag_news") and is_hub_name("user/set.v2") and is_hub_name("glue:sst2")
    for path in ("train.csv", "eng.testa", "./data", "/data/set", "no/folder/set", "user/a.tsv"):
        assert not is_hub_name(path), path


def test_a_data_set_of_the_datasets_library(tmp_path, monkeypatch):
    # a folder with Parquet files is loaded by the same call as a name on the Hub
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "ner_tags": [[0, 1], [0]]}
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    table = read_hub(str(folder), "train")
    assert datasets.is_progress_bar_enabled()
    assert table.columns["label"] == ["yes", "no"]
    assert table.columns["ner_tags"] == [["O", "B-X"], ["O"]]
    with pytest.raises(UserError, match=r"neither a file nor a data set with a split 'test'"):
        read_hub(str(folder), "test")
