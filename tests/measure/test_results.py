from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from turnout.errors import UserError
from turnout.measure import results as schema
from turnout.measure.machine import describe
from turnout.measure.results import Machine, Results, load

PAGE = Path(__file__).parents[2] / "docs" / "results-schema.md"
RECORDS = ("Results", "Machine", "TaskSummary", "Arm", "Quality", "Seconds", "Speedup", "Heatmap")


def test_round_trip_through_a_file(results: Results, tmp_path: Path):
    results.save(tmp_path / "results.json")
    assert load(tmp_path / "results.json") == results


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_another_schema_version_is_refused(raw: dict, version: object, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**raw, "schema_version": version}))
    with pytest.raises(UserError, match=r"results\.json: schema_version is .*reads 1"):
        load(path)


@pytest.mark.parametrize("content", ["[]", "3", '"text"'])
def test_json_that_is_no_object_is_refused(content: str, tmp_path: Path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="schema_version is None"):
        load(tmp_path / "results.json")


def test_a_broken_field_is_named(raw: dict, tmp_path: Path):
    raw["arms"][2]["seconds"]["median"] = -1
    raw["surprise"] = 1
    (tmp_path / "results.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"arms\.2\.seconds\.median.*2 problem"):
        load(tmp_path / "results.json")


def test_numpy_values_become_plain(raw: dict):
    raw["arms"][0]["report"] = {"0": {"support": np.int64(3), "f1": np.float32(0.5)}}
    raw["units"] = {"routed-50": {"layer.0": np.array([0.5, 1.0])}}
    made = Results.model_validate(raw)
    assert made.arms[0].report == {"0": {"support": 3, "f1": 0.5}}
    assert json.loads(made.model_dump_json())["units"] == {"routed-50": {"layer.0": [0.5, 1.0]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["arms"].append(raw["arms"][1]), "names must differ"),
        (lambda raw: raw["arms"].pop(0), "exactly one arm of family 'dense'"),
        (lambda raw: raw["units"].update(ghost={}), "not there: .'ghost'"),
        (lambda raw: raw["heatmap"].update(arm="ghost"), "not there: .'ghost'"),
        (lambda raw: raw["heatmap"]["ran"].pop(), "ran must be 6 layers x"),
        (lambda raw: raw["heatmap"]["ran"][0].pop(), "ran must be 6 layers x"),
        (lambda raw: raw["arms"][0]["quality"].update(value=float("nan")), "finite"),
    ],
)
def test_fields_that_contradict_are_refused(
    raw: dict, change: Callable[[dict], object], message: str
):
    change(raw)
    with pytest.raises(ValidationError, match=message):
        Results.model_validate(raw)


def test_family_is_fastest_first(results: Results):
    assert [arm.name for arm in results.family("static")] == ["first-2", "first-3", "every-other"]
    assert results.dense.name == "dense"


def test_machine_is_what_describe_gives():
    assert Machine.model_validate(describe()).model_dump() == describe()


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_is_on_the_schema_page(record: str):
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rows = next(part for part in section if part.startswith(f"{record}\n")).splitlines()
    named = {name for row in rows if row.startswith("| `") for name in _first_cell(row)}
    assert named == set(getattr(schema, record).model_fields)


def _first_cell(row: str) -> list[str]:
    return re.findall(r"`(\w+)`", row.split("|")[1])
