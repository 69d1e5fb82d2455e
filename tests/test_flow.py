"""Random numbers that are a function of the seed and the input."""

from __future__ import annotations

import torch

from turnout.flow import Flow, hash_uniform, sequence_keys
from turnout.route import Site, UnitCost

PINNED = [0.314621, 0.757158, 0.98804, 0.549247]
SITE = Site("encoder.0.layer", "layer", "encoder", 0, 1, 1, UnitCost(row=1.0))


def flow(seed: int = 0, mask: torch.Tensor | None = None, **inputs: torch.Tensor) -> Flow:
    return Flow(inputs, seed, 1.0, False, lambda stack, b, t: mask)


def test_uniform_numbers_are_uniform() -> None:
    draws = hash_uniform(torch.arange(100_000), 1)
    assert draws.dtype == torch.float32 and draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert (counts - 5000).abs().max() < 350  # five standard deviations
    assert abs(float(draws.mean()) - 0.5) < 0.005


def test_neighbouring_keys_and_salts_are_independent() -> None:
    keys = torch.arange(50_000)
    one = hash_uniform(keys, 1, 0)
    pairs = {
        "next key": (one[:-1], one[1:]),
        "next salt": (one, hash_uniform(keys, 1, 1)),
        "other salt": (one, hash_uniform(keys, 2, 0)),
    }
    for name, pair in pairs.items():
        assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.02, name
    assert not torch.equal(hash_uniform(keys, 1, 2), hash_uniform(keys, 2, 1))


def test_the_numbers_stay_the_same_in_every_release() -> None:
    """A seed in a paper must give the same routes later, on any device."""
    found = hash_uniform(torch.tensor([0, 1, -5, 2**62]), 1, 2)
    assert [round(float(value), 6) for value in found] == PINNED


def test_keys_ignore_padding_on_either_side() -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    left, right = sequence_keys(ids, mask).tolist()
    assert left == right == int(sequence_keys(torch.tensor([[5, 6, 7]]), None))


def test_keys_see_order_and_content() -> None:
    texts = [[5, 6, 7], [7, 6, 5], [5, 6, 8], [5, 5, 6], [6, 5, 5]]
    assert len(set(sequence_keys(torch.tensor(texts), None).tolist())) == len(texts)


def test_seeds_give_other_numbers() -> None:
    ids = torch.arange(12).view(3, 4)
    device = ids.device
    draws = [flow(seed, input_ids=ids).uniform_B(3, device, 1) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_inputs_without_ids_use_their_place() -> None:
    draws = flow().uniform_B(3, torch.device("cpu"), 1)
    assert len(set(draws.tolist())) == 3


def test_tokens_count_from_the_first_real_one() -> None:
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    padded = torch.nn.functional.pad
    long_ids, long_mask = padded(ids, (2, 1)), padded(mask, (2, 1))
    short = flow(input_ids=ids, attention_mask=mask.long())
    long = flow(mask=long_mask, input_ids=long_ids, attention_mask=long_mask.long())
    for one, length in ((short, 3), (long, 6)):
        one.enter(SITE.stack, torch.zeros(1, length, 2))
    a = short.uniform_BT(torch.zeros(1, 3, 2), SITE, 4)
    b = long.uniform_BT(torch.zeros(1, 6, 2), SITE, 4)
    assert torch.equal(a[0], b[0, 2:5]) and len(set(a[0].tolist())) == 3
