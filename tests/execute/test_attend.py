"""Watched attention: what each token received, on every host with an encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, Host
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.execute import reference_execution

WITH_ENCODER = [host for host in HOSTS if "encoder" in host.stacks]
every_encoder = pytest.mark.parametrize("host", WITH_ENCODER, ids=lambda host: host.name)
ROUTER: dict[str, Any] = {"kind": "token-attention", "stack": "encoder", "keep": "top-k"}


def eager_attention(host: Host, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """(B, H, T, T) a layer, by the host's own slow function."""
    out = host.build("eager")(**inputs, output_attentions=True)
    found = out.get("encoder_attentions")
    return list(out["attentions"] if found is None else found)


def watched(model: PreTrainedModel) -> dict[int, torch.Tensor]:
    """(B, T) a layer of the encoder."""
    memory = model.turnout.current_flow().memory
    return {int(key.split(".")[1]): v for (key, name), v in memory.items() if name == "received"}


@every_encoder
@pytest.mark.parametrize("whose", ["class", "all"])
def test_received_attention_is_that_of_the_host(host: Host, whose: str) -> None:
    model, inputs = host.build(), host.inputs("right")
    turnout.install(model, [{**ROUTER, "received": whose}])
    with torch.no_grad():
        model(**inputs)
        expected = eager_attention(host, inputs)
    found = watched(model)
    assert sorted(found) == [0, 1]  # of the last block nobody asks
    valid_BT = model.turnout.current_flow().trace.mask_BT["encoder"]
    for layer, received_BT in found.items():
        mean_BQT = expected[layer].mean(1)
        asks_BT = torch.ones(received_BT.shape) if valid_BT is None else valid_BT.float()
        if whose == "class":
            asks_BT = torch.zeros_like(asks_BT)
            asks_BT[:, 0] = 1.0
        share_BT = (mean_BQT * asks_BT[:, :, None]).sum(1) / asks_BT.sum(1, keepdim=True)
        count_B1 = mean_BQT.shape[-1] if valid_BT is None else valid_BT.sum(1, keepdim=True)
        torch.testing.assert_close(received_BT, share_BT * count_B1, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("visible", [True, False])
def test_a_class_token_that_was_skipped_asks_nothing(visible: bool) -> None:
    host = BY_NAME["bert"]
    skip = {"kind": "random-skip", "granularity": "token", "rate": 0.5, "layers": [0, 1]}
    watch = {"kind": "token-attention", "site": "ffn", "received": "class", "layers": [1, 2]}
    model = turnout.install(host.build(), [{**skip, "visible": visible}, watch]).eval()
    silent = 0
    for seed in range(6):
        model.turnout.seed = seed
        with torch.no_grad():
            model(**host.inputs("none"))
            found = watched(model)
            route = model.turnout.current_flow().trace["encoder.0.layer"]
            with reference_execution():
                model(**host.inputs("none"))
        asked_B = route.active_BT[:, 0]
        torch.testing.assert_close(found[0], watched(model)[0])
        assert found[0].eq(1).all(1).tolist() == (~asked_B).tolist()
        silent += int((~asked_B).sum())
    assert 0 < silent < 18


@every_encoder
def test_the_watched_function_is_the_hosts(host: Host) -> None:
    model, inputs = host.build(), host.inputs("right")
    with torch.no_grad():
        before = model(**inputs)["logits"]
        turnout.install(model, [ROUTER])
        assert torch.equal(model(**inputs)["logits"], before)  # at budget 1 everything runs
        turnout.uninstall(model)
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(**inputs)["logits"], before)
    assert not any("_turnout_attends" in module.__dict__ for module in model.modules())


@every_encoder
@pytest.mark.parametrize("visible", [True, False])
def test_packed_equals_reference(host: Host, visible: bool) -> None:
    if not visible and not host.hideable:
        pytest.skip("an encoder-decoder cannot hide tokens")
    model, inputs = host.build(), host.inputs("right")
    turnout.install(model, [{**ROUTER, "visible": visible}])
    model.turnout.budget = 0.5
    with torch.no_grad():
        packed = model(**inputs)["logits"]
        with reference_execution():
            slow = model(**inputs)["logits"]
    torch.testing.assert_close(packed, slow, atol=1e-4, rtol=1e-4)


def test_skipped_tokens_ask_nothing_and_stay_skipped() -> None:
    model, inputs = BY_NAME["bert"].build(), BY_NAME["bert"].inputs("none")
    turnout.install(model, [ROUTER])
    model.turnout.budget = 0.5
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs)
    first, second = (trace[f"encoder.{layer}.layer"].active_BT for layer in (1, 2))
    assert first[:, 0].all() and second[:, 0].all()
    assert not (second & ~first).any()


def test_a_pass_under_activation_checkpointing_routes_alike() -> None:
    model = BY_NAME["bert"].build().train()
    turnout.install(model, [{**ROUTER, "keep": "threshold", "open": 0.0}])
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(5)
        model(**BY_NAME["bert"].inputs())["logits"].square().sum().backward()
        grads.append(model.turnout.all_routers()[0].bias.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].abs().sum() > 0


@every_encoder
def test_bf16_steps_have_the_gradients_of_the_host(host: Host) -> None:
    def gradients(bf16: bool, routed: bool) -> torch.Tensor:
        model = host.build()  # without dropout, whose draws would differ
        if routed:  # all tokens run, through the watched function and its kernel for bf16
            turnout.install(model, [ROUTER])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**host.inputs("right"))["logits"]
        logits.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, plain, ours = (gradients(*how) for how in ((False, False), (True, False), (True, True)))
    error, usual = (1 - torch.cosine_similarity(exact, each, dim=0) for each in (ours, plain))
    assert error < 2 * usual + 0.01  # as far off as bf16 is by itself


def test_what_cannot_be_watched_is_refused() -> None:
    with pytest.raises(UserError, match="set `stack: encoder`"):
        turnout.install(BY_NAME["llama"].build(), [{"kind": "token-attention"}])
    with pytest.raises(UserError, match="at different attention"):
        turnout.install(
            BY_NAME["bert"].build(),
            [
                {"kind": "token-attention", "received": "all"},
                {"kind": "token-attention", "site": "ffn", "received": "class"},
            ],
        )
    model = BY_NAME["bert"].build()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="attn_implementation='sdpa'"):
        turnout.install(model, [{"kind": "token-attention"}])
    assert not hasattr(model, "turnout")


def test_saved_and_loaded(tmp_path: Any) -> None:
    model, inputs = BY_NAME["bert"].build(), BY_NAME["bert"].inputs("right")
    turnout.install(model, [{**ROUTER, "keep": "threshold", "open": 0.0}])
    model.turnout.budget = 0.5
    with torch.no_grad():
        before = model(**inputs)["logits"]
        model.save_pretrained(tmp_path)
        again = turnout.load(tmp_path)
        assert torch.equal(again(**inputs)["logits"], before)
