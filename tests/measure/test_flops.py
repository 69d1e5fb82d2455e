"""Work of a host, whole and with parts skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_router import FixedConfig, fixed_router
from hosts_table import BY_NAME, HOSTS, LAYERS, VOCAB, Host
from torch.utils.flop_counter import FlopCounterMode

import turnout
from turnout.execute.pool import predict_bulk
from turnout.measure.flops import dense_flops, depth_of, mean_flops

LENGTHS = (4, 9, 9, 6, 3)
ROWS = [
    {"input_ids": [3 + (7 * i + n) % (VOCAB - 3) for i in range(n)], "attention_mask": [1] * n}
    for n in LENGTHS
]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask")
    }


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_depth_counts_every_stack(host: Host) -> None:
    assert depth_of(host.build()) == LAYERS * len(host.stacks)


def test_dense_work_is_what_torch_counts_in_the_blocks() -> None:
    model = BY_NAME["roberta"].build("eager")
    per_token = 2 * model.classifier.weight.numel()
    for row in ROWS:
        length = len(row["input_ids"])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**collate([row]))
        counted = dense_flops(model, np.array([length]))[0] + per_token * length
        assert counter.get_total_flops() == pytest.approx(counted)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize(
    "sites", [("layer",), ("ffn",), ("layer", "attention"), ("layer", "ffn")], ids="+".join
)
def test_one_row_a_batch_counts_what_torch_counts(sites: tuple[str, ...], granularity: str) -> None:
    """A sub-block in a routed layer is counted once."""
    model = BY_NAME["roberta"].build("eager")
    head = 2 * model.classifier.weight.numel() * sum(LENGTHS)
    with fixed_router():
        turnout.install(model, [FixedConfig(site=s, granularity=granularity) for s in sites])
    with FlopCounterMode(display=False) as counter:
        result = predict_bulk(model, ROWS, collate, batch_tokens=1)
    counted = mean_flops(model, np.array(LENGTHS), result) * len(ROWS)
    assert counter.get_total_flops() == pytest.approx(counted + head, rel=1e-6)
    assert 0 <= result.share < 1 and (result.units >= 0).all()


def test_pooled_rows_count_the_blocks_that_ran() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "random-skip", "rate": 0.5}])
    model.turnout.seed = 3
    lengths = np.array(LENGTHS)
    result = predict_bulk(model, ROWS, collate)
    assert 0 < result.units.sum() < LAYERS * len(ROWS)
    expected = (dense_flops(model, lengths) * result.units / LAYERS).mean()
    assert mean_flops(model, lengths, result) == pytest.approx(expected)
