"""A host's answers for the training rows are computed once, and read by whoever starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME
from tiny import stacked
from transformers import BertForTokenClassification

from turnout.train import teacher
from turnout.train.teacher import FILE, teacher_logits

ROWS: list[dict[str, Any]] = [
    {"input_ids": [3 + n, 9, 4, 40 - n], "attention_mask": [1] * 4, "labels": n % 3}
    for n in range(6)
]


def tagger() -> Any:
    torch.manual_seed(0)
    return BertForTokenClassification(BY_NAME["bert"].build().config).eval()


@pytest.mark.parametrize("build", [BY_NAME["bert"].build, tagger])
def test_answers_are_read_as_they_were_written(build: Any, tmp_path: Path) -> None:
    asked = teacher_logits(build(), ROWS, stacked)
    first = teacher_logits(build(), ROWS, stacked, tmp_path)
    again = teacher_logits(torch.nn.Linear(1, 1), ROWS, stacked, tmp_path)  # type: ignore[arg-type]
    assert len(first) == len(again) == len(ROWS)
    for one, two, three in zip(asked, first, again, strict=True):
        assert one.shape == two.shape == three.shape
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(two, three)


def test_rows_of_other_lengths_stay_apart(tmp_path: Path) -> None:
    logits = [np.arange(2.0 * n, dtype=np.float32).reshape(n, 2) for n in (3, 1, 4)]
    teacher._write(tmp_path / FILE, "these", logits)
    read = teacher._read(tmp_path / FILE, "these")
    assert read is not None
    for one, other in zip(logits, read, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_rows_and_damaged_files_are_asked_anew(tmp_path: Path) -> None:
    model = BY_NAME["bert"].build()
    first = teacher_logits(model, ROWS, stacked, tmp_path)
    swapped = teacher_logits(model, ROWS[::-1], stacked, tmp_path)
    np.testing.assert_allclose(np.stack(swapped[::-1]), np.stack(first), rtol=1e-5, atol=1e-6)
    assert not np.allclose(swapped[0], first[0])
    (tmp_path / FILE).write_bytes(b"half")
    np.testing.assert_array_equal(teacher_logits(model, ROWS, stacked, tmp_path), first)
    np.testing.assert_array_equal(teacher_logits(model, ROWS, stacked, tmp_path), first)
