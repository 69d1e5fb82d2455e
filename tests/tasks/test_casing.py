"""How words are written, beside their tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from tokenizers import normalizers

from turnout.tasks.casing import CASES, NAME, case_of, cased


@pytest.mark.parametrize(
    ("word", "case"),
    [
        *[("film", 1), ("EU", 2), ("Rome", 3), ("A", 3), ("McDonald", 4), ("1998", 5), ("F16", 6)],
        *[(",", 0), ("-", 0), ("O'Neill", 4), ("电影", 1), ("Über", 3)],
    ],
)
def test_every_word_has_a_class(word: str, case: int) -> None:
    assert CASES[case_of(word)] == CASES[case]


def lowering() -> object:
    made = tiny.tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return cased(made)


def test_tokens_carry_the_class_of_their_word(tmp_path: Path) -> None:
    made = lowering()
    out = made("The FILM was in Rome")  # type: ignore[operator]
    assert out[NAME] == [0, 3, 2, 1, 1, 3, 0] and "offset_mapping" not in out
    words = made([["The", "FILM"], ["A1"]], is_split_into_words=True)  # type: ignore[operator]
    assert words[NAME] == [[0, 3, 2, 0], [0, 6, 0]]
    pair = made(["a Film"], ["ROME"], return_offsets_mapping=True)  # type: ignore[operator]
    assert pair[NAME] == [[0, 1, 3, 0, 2, 0]] and "offset_mapping" in pair
    batch = made.pad({k: words[k] for k in ("input_ids", NAME)}, return_tensors="pt")  # type: ignore[attr-defined]
    assert batch[NAME].tolist() == [[0, 3, 2, 0], [0, 6, 0, 0]]
    assert isinstance(batch[NAME], torch.Tensor)
    made.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert cased(made) is made and made.model_input_names.count(NAME) == 1  # type: ignore[attr-defined]
