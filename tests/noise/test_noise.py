"""Noise by itself: configs, its distribution, its starts and sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from turnout.flow import Flow, hash_normal
from turnout.noise import NOISES, AnyNoiseConfig, Noise, NoisePlace
from turnout.noise.attention import AttentionNoise, AttentionNoiseConfig
from turnout.noise.ffn import FfnNoise, FfnNoiseConfig

PLACE = NoisePlace("encoder", 2, width=32, heads=4, head_width=8)


def flow_of(seed: int = 5, batch: int = 3) -> Flow:
    flow = Flow({}, seed, 1.0, True, noise=1.0)
    flow.known_keys_B = torch.arange(batch)
    return flow


def places(batch: int, length: int) -> torch.Tensor:
    return torch.arange(length).expand(batch, length)


@pytest.mark.parametrize("kind", list(NOISES))
def test_a_config_goes_through_json(kind: str) -> None:
    config = NOISES[kind].Config.model_validate({"kind": kind, "layers": [0, -1], "per": "forward"})
    again = TypeAdapter(AnyNoiseConfig).validate_json(config.model_dump_json())
    assert again == config and type(again) is type(config)
    with pytest.raises(ValidationError, match="Extra inputs"):
        NOISES[kind].Config.model_validate({"kind": kind, "sigma": 1})
    with pytest.raises(ValidationError, match="greater than 0"):
        NOISES[kind].Config.model_validate({"kind": kind, "start": 0.0})


def test_which_blocks_a_config_covers() -> None:
    config = FfnNoiseConfig(layers=(0, -1), hold_last=1)
    assert [config.covers("encoder", n, 4) for n in range(4)] == [True, False, False, False]
    config = FfnNoiseConfig(hold_first=1, stack="decoder")
    assert [config.covers("decoder", n, 3) for n in range(3)] == [False, True, True]
    assert not config.covers("encoder", 2, 3)


@pytest.mark.parametrize("start", [1e-4, 0.05, 1.0, 30.0])
def test_sigma_starts_where_it_is_told(start: float) -> None:
    made: list[Noise] = [
        FfnNoise(FfnNoiseConfig(start=start), PLACE),
        AttentionNoise(AttentionNoiseConfig(start=start), PLACE),
    ]
    for noise in made:
        assert noise.sigma.detach().tolist() == pytest.approx([start] * len(noise.rho), rel=1e-3)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_numbers_are_normal_and_repeat(count: int) -> None:
    keys = torch.arange(20_000) * 977
    found = hash_normal(keys, count)
    assert found.shape == (20_000, count) and found.dtype == torch.float32
    assert torch.equal(found, hash_normal(keys, count)) and bool(found.isfinite().all())
    assert found.mean(0).abs().max() < 0.04 and (found.std(0) - 1).abs().max() < 0.03
    assert abs(float((found**4).mean()) - 3) < 0.25
    if count > 1:
        close = torch.corrcoef(found.T) - torch.eye(count)
        assert close.abs().max() < 0.05
    assert abs(float((found[1:] * found[:-1]).mean())) < 0.02


def test_ffn_noise_has_the_mean_and_sigma_that_it_says() -> None:
    noise, flow = FfnNoise(FfnNoiseConfig(start=0.2), PLACE), flow_of(batch=400)
    assert noise.mu is not None
    noise.mu.data.fill_(0.5)
    noise.size.fill_(3.0)
    keys_R = noise.keys_BT(flow, places(400, 20)).reshape(-1)
    with torch.no_grad():
        added = noise.perturb(torch.zeros(8000, 32), keys_R, scale=2.0)
    assert float(added.mean()) == pytest.approx(3.0, rel=0.01)  # 2 * 3 * 0.5
    assert float(added.std()) == pytest.approx(1.2, rel=0.02)  # 2 * 3 * 0.2
    assert noise.perturb(torch.zeros(1, 8000, 32).bfloat16(), keys_R, 1.0).dtype == torch.bfloat16


def test_what_draws_are_shared_by() -> None:
    found = {}
    for per in ("token", "sequence", "forward"):
        noise = FfnNoise(FfnNoiseConfig(per=per), PLACE)
        keys_R = noise.keys_BT(flow_of(), places(3, 4)).reshape(-1)
        with torch.no_grad():
            rows = noise.perturb(torch.zeros(12, 32), keys_R, 1.0)
        found[per] = len(rows.unique(dim=0))
    assert found == {"token": 12, "sequence": 3, "forward": 1}


def test_attention_draws_depend_on_pairs_or_on_how_far_apart_they_are() -> None:
    for per, shared, alike in (("token", 0, 0), ("sequence", 1, 0), ("forward", 1, 1)):
        noise = AttentionNoise(AttentionNoiseConfig(per=per), PLACE)
        keys_B = noise.keys_B(flow_of(), 3, torch.device("cpu"))
        with torch.no_grad():
            bias = noise.bias(keys_B, places(3, 5), places(3, 5), 1.0)
        assert bias.shape == (3, 4, 5, 5)
        assert torch.equal(bias[:, :, 0, 0], bias[:, :, 1, 1]) == bool(shared)
        assert torch.equal(bias[0], bias[1]) == bool(alike)
        assert len(bias[0, :, 2, 3].unique()) == 4, "heads draw apart"


def test_layers_kinds_and_stacks_draw_apart() -> None:
    seen = set()
    for place in (PLACE, NoisePlace("encoder", 3, 32, 4), NoisePlace("decoder", 2, 32, 4)):
        for noise in (
            FfnNoise(FfnNoiseConfig(), place),
            AttentionNoise(AttentionNoiseConfig(), place),
        ):
            seen.add(int(noise.keys_B(flow_of(), 1, torch.device("cpu"))[0]))
    assert len(seen) == 6


def test_the_mean_in_the_queries_is_that_of_the_logits() -> None:
    """(q + q A B^T) k^T = q k^T + (q A)(k B)^T, and its mean square is what the pass remembers."""
    noise = AttentionNoise(AttentionNoiseConfig(mean=True, rank=3), PLACE)
    assert noise.ask is not None and noise.answer is not None
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    with torch.no_grad():
        assert torch.equal(noise.turn(query, 1.0), query), "the mean starts at 0"
        noise.answer.normal_()
        noise.size.fill_(2.0)
        mean = (query @ noise.ask) @ (key @ noise.answer).transpose(2, 3)
        turned = noise.turn(query, 0.5) @ key.transpose(2, 3)
        torch.testing.assert_close(turned, query @ key.transpose(2, 3) + 0.5 * mean)
        seen = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
        flow = flow_of()
        noise.note_mean(flow, query, key, seen, scale=0.25)
        pairs = [(mean[:, h] * 0.25 / 2.0)[seen[:, 0]].square().mean() for h in range(4)]
    torch.testing.assert_close(noise.mean_square(flow), torch.stack(pairs))
