"""Groups of like length, lengths of rows, and what a model is called with."""

from __future__ import annotations

import numpy as np
from hosts_table import BY_NAME
from hypothesis import given
from hypothesis import strategies as st
from tiny import stacked

import turnout
from turnout.execute.batches import FILL, TIGHT, groups_by_length, inputs_of, lengths_of
from turnout.execute.pool import predict_bulk

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=80).map(np.array)


@given(LENGTHS, st.integers(1, 2000))
def test_groups_hold_every_row_once_and_little_padding(lengths: np.ndarray, tokens: int) -> None:
    groups = list(groups_by_length(lengths, tokens))
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    for group in groups:
        longest = lengths[group].max()
        assert len(group) == 1 or len(group) * longest <= tokens
        unlike = lengths[group] < TIGHT * longest
        assert not unlike.any() or len(group) * longest <= FILL * tokens


def test_lengths_are_those_of_real_tokens() -> None:
    padded = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}
    assert lengths_of([padded, {"input_ids": [5, 6, 7]}]).tolist() == [2, 3]
    assert lengths_of([{"pixel_values": np.zeros((3, 16, 16))}]).tolist() == [2]


def test_rows_that_are_padded_already_are_pooled_as_well() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "random-skip", "rate": 0.5}])
    model.turnout.seed = 1
    inputs = BY_NAME["bert"].inputs()
    rows = [{name: value[i].tolist() for name, value in inputs.items()} for i in range(3)]

    found, expected = (
        predict_bulk(model, rows, stacked, pooled=pooled) for pooled in (True, False)
    )
    assert found.units.tolist() == expected.units.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_one_pass_needs_no_cache_and_a_decoder_reads_off_the_labels() -> None:
    row = {"input_ids": [4, 5], "labels": [7, -100]}
    llama = inputs_of(BY_NAME["llama"].build(), [row], stacked)
    assert llama["use_cache"] is False and set(llama) == {"input_ids", "use_cache"}
    t5 = BY_NAME["t5"].build()
    read = inputs_of(t5, [row], stacked)["decoder_input_ids"]
    assert read.tolist() == [[t5.config.decoder_start_token_id, 7]]
    assert set(inputs_of(BY_NAME["bert"].build(), [row], stacked)) == {"input_ids"}
