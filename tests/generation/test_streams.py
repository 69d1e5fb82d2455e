"""Pieces of text: whole characters, and nothing of a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from turnout.generation.streams import Pieces


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def fed(tokenizer: PreTrainedTokenizerFast, text: str, *stop: str) -> tuple[list[str], Pieces]:
    row = Pieces(tokenizer, stop)
    pieces = [row.add(token) for token in tokenizer(text)["input_ids"]]
    return [*pieces, row.end()], row


def test_no_part_of_a_character_is_shown(byte_level: PreTrainedTokenizerFast) -> None:
    text = "né 中文 🙂 end"
    pieces, row = fed(byte_level, text)
    assert "".join(pieces) == row.text == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(text.encode()) + 1


def test_half_a_character_at_the_end_is_told_of(byte_level: PreTrainedTokenizerFast) -> None:
    row = Pieces(byte_level)
    for token in byte_level("a中")["input_ids"][:-1]:
        row.add(token)
    row.end()
    assert row.text == "a\ufffd"


def test_nothing_of_a_stop_string_is_shown(byte_level: PreTrainedTokenizerFast) -> None:
    pieces, row = fed(byte_level, "one\nUse it\nUser: two", "\nUser:")
    assert "".join(pieces) == row.text == "one\nUse it" and row.stopped
    pieces, row = fed(byte_level, "one\nUse", "\nUser:")
    assert "".join(pieces) == "one\nUse" and not row.stopped


def test_work_is_linear_in_the_length(byte_level: PreTrainedTokenizerFast) -> None:
    decoded = 0

    class Counting(Pieces):
        def _decoded(self, ids: list[int]) -> str:
            nonlocal decoded
            decoded += len(ids)
            return super()._decoded(ids)

    row = Counting(byte_level)
    for token in byte_level("a film " * 300)["input_ids"]:
        row.add(token)
    assert decoded < 4 * 2100
