"""Noise, laws: over every host that reads text, what noise promises."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, Host, output_mask
from torch import Tensor
from transformers import PreTrainedModel

import turnout
from turnout.execute import reference_execution
from turnout.train.noise import size_from

TEXT = [host for host in HOSTS if host.reads in ("text", "pairs")]
WRITERS = [host.name for host in TEXT if host.causal]
PERS = ["token", "sequence", "forward"]
GATE: dict[str, Any] = {"kind": "gate", "granularity": "token", "open": 0.0}
every_text_host = pytest.mark.parametrize("host", TEXT, ids=lambda host: host.name)


def noisy(host: Host, *routers: Any, per: str = "token", **fields: Any) -> PreTrainedModel:
    """A host with both kinds of noise, of which every parameter matters."""
    noise = [
        {"kind": "ffn", "per": per, "start": 0.3, **fields},
        {"kind": "attention", "per": per, "start": 0.5, "mean": True, **fields},
    ]
    model: Any = turnout.install(host.build(), routers, noise=noise)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logits_of(model: PreTrainedModel, inputs: dict[str, Tensor], seed: int | None = None) -> Tensor:
    model.turnout.seed = seed  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        return model(**inputs).logits


@every_text_host
def test_passes_differ_a_seed_repeats_and_scale_0_is_the_host(host: Host) -> None:
    inputs, model = host.inputs(), noisy(host)
    with torch.no_grad():
        plain = host.build()(**inputs).logits
    assert not torch.equal(logits_of(model, inputs), logits_of(model, inputs))
    one = logits_of(model, inputs, 3)
    assert torch.equal(one, logits_of(model, inputs, 3))
    assert not torch.equal(one, logits_of(model, inputs, 4))
    with model.turnout.noisy_at(0.0):  # type: ignore[union-attr, operator]
        assert torch.equal(plain, logits_of(model, inputs, 3))
    with model.turnout.noisy_at(0.5):  # type: ignore[union-attr, operator]
        half = logits_of(model, inputs, 3)
    real = output_mask(inputs, one)
    assert 0 < ((half - plain) * real).norm() < ((one - plain) * real).norm()


@every_text_host
def test_gradients_reach_everything_with_checkpointing_and_without(host: Host) -> None:
    model: Any = noisy(host, GATE | {"site": "ffn"}).train()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
    inputs, found = host.inputs(), []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable()
        torch.manual_seed(5)
        model.zero_grad()
        logits = model(**inputs).logits
        flow = model.turnout.current_flow()
        divergence = torch.stack([each.kl(flow).sum() for each in model.turnout.all_noise()])
        loss = (logits * output_mask(inputs, logits)).square().mean() + divergence.sum()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), grads))
    (loss, grads), (loss_2, grads_2) = found
    torch.testing.assert_close(loss, loss_2)
    own = [name for name, _ in model.named_parameters() if name.startswith("turnout.noise.")]
    assert len(own) == 5 * len(model.turnout.noise) // 2
    assert all(grads[name].abs().sum() > 0 for name in own)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads_2[name], rtol=1e-4, atol=1e-5, msg=name)


@every_text_host
def test_saved_and_loaded_gives_the_same(host: Host, tmp_path: Path) -> None:
    model: Any = noisy(host, per="sequence")
    for each in model.turnout.all_noise():
        each.size.fill_(1.5)
    model.turnout.noise_scale = 0.7
    model.save_pretrained(tmp_path)
    again: Any = turnout.load(tmp_path)
    assert again.turnout.noise_scale == 0.7
    assert torch.equal(logits_of(model, host.inputs(), 3), logits_of(again, host.inputs(), 3))


@every_text_host
def test_uninstall_leaves_no_trace(host: Host) -> None:
    model = host.build()
    with torch.no_grad():
        before = model(**host.inputs()).logits
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    keys, config = list(model.state_dict()), deepcopy(model.config.to_dict())
    turnout.install(model, noise=[{"kind": "ffn"}, {"kind": "attention"}])
    assert not torch.equal(before, logits_of(model, host.inputs()))
    assert [key for key in model.state_dict() if not key.startswith("turnout.")] == keys
    turnout.uninstall(model)
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert (list(model.state_dict()), model.config.to_dict()) == (keys, config)
    with torch.no_grad():
        assert torch.equal(before, model(**host.inputs()).logits)


@every_text_host
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("per", PERS)
def test_a_row_alone_is_the_row_in_its_batch(host: Host, per: str, side: str) -> None:
    if side == "left" and (host.reads == "pairs" or not host.causal):
        pytest.skip("this host counts places from the left edge, padding or not")
    model, inputs = noisy(host, per=per), host.inputs(side)
    if side == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    alone = {}
    for name, value in inputs.items():
        mask = inputs["decoder_attention_mask" if name.startswith("dec") else "attention_mask"]
        alone[name] = value[1:2][:, mask[1].bool()]
    whole = logits_of(model, inputs, 3)
    wanted = whole[1] if whole.ndim == 2 else whole[1][output_mask(inputs, whole)[1, :, 0] > 0]
    torch.testing.assert_close(logits_of(model, alone, 3)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("name", WRITERS)
def test_generate_with_a_cache_and_without(name: str, per: str) -> None:
    host = BY_NAME[name]
    model: Any = noisy(host, per=per)
    model.turnout.seed = 11
    every = host.inputs("right" if host.reads == "pairs" else "left")
    inputs = {key: every[key] for key in ("input_ids", "attention_mask")}
    options: dict[str, Any] = dict(
        max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    for sample in (False, True):
        runs = []
        for more in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
            torch.manual_seed(4)
            runs.append(model.generate(**inputs, **options, **more, do_sample=sample))
        for run in runs[1:]:
            assert torch.equal(runs[0].sequences, run.sequences)
            for one, other in zip(runs[0].scores, run.scores, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with model.turnout.noisy_at(0.0):
        quiet = model.generate(**inputs, **options, do_sample=False)
    assert not torch.allclose(quiet.scores[0], runs[0].scores[0], rtol=1e-3, atol=1e-3)


@every_text_host
@pytest.mark.parametrize("site", ["ffn", "layer", "hidden"])
def test_packed_rows_get_the_noise_that_they_get_by_the_definition(host: Host, site: str) -> None:
    if site == "hidden" and not host.hideable:
        pytest.skip("only encoders hide tokens")
    gate = GATE | {"site": "ffn"} if site == "ffn" else GATE | {"site": "layer"}
    if site == "layer":
        gate["granularity"] = "sequence"
    if host.causal and site == "layer":
        gate["granularity"] = "token"
    if site == "hidden":
        gate["visible"] = False
    model: Any = noisy(host, gate)
    model.turnout.budget = 0.5
    inputs = host.inputs()
    with turnout.trace() as trace:
        fast = logits_of(model, inputs, 3)
    assert 0 < float(turnout.trace_share(trace)) < 1
    with reference_execution():
        slow = logits_of(model, inputs, 3)
    real = output_mask(inputs, slow)
    torch.testing.assert_close(fast * real, slow * real, rtol=1e-4, atol=1e-4)


@every_text_host
def test_sizes_are_measured_in_every_block(host: Host) -> None:
    """Padding counts for nothing: a batch with one padded row, and its rows one by one."""
    model: Any = noisy(host)
    inputs = host.inputs()
    size_from(model, [inputs])
    once = [noise.size.clone() for noise in model.turnout.all_noise()]
    rows = []
    for row in range(3):
        alone = {}
        for name, value in inputs.items():
            start = "decoder_" if name.startswith("decoder_") else ""
            alone[name] = value[row : row + 1][:, inputs[f"{start}attention_mask"][row].bool()]
        rows.append(alone)
    size_from(model, rows)
    for size, noise in zip(once, model.turnout.all_noise(), strict=True):
        assert bool((size > 0).all()) and not torch.equal(size, torch.ones_like(size))
        torch.testing.assert_close(noise.size, size, rtol=1e-3, atol=1e-5)
