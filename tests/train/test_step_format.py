"""The number format of training: chosen by time, without a trace in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from turnout.train import step_format as module
from turnout.train.data import encode
from turnout.train.step_format import BF16, BF16_EAGER, FP32, attention_of, step_format

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="times steps of a CPU")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})


def batch_of(work: Any) -> dict[str, torch.Tensor]:
    return encode(work.task, work.raw, work.tokenizer).usual_batch(8)


@cpu_only
@pytest.mark.parametrize("wanted, tried", [("auto", 3), ("bf16", 2), ("fp32", 0)])
def test_real_steps_are_timed_and_leave_no_trace(work: Any, wanted: Any, tried: int) -> None:
    model = work.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    state = torch.random.get_rng_state()
    found, seconds = step_format(wanted, model, batch_of(work))
    assert len(seconds) == tried and all(spent > 0 for spent in seconds.values())
    assert found.bf16 == (wanted == "bf16") or wanted == "auto"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config._attn_implementation == attention and not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


@cpu_only
@pytest.mark.parametrize(
    "seconds, wanted",
    [((1.0, 0.95, 0.99), FP32), ((1.0, 0.6, 0.5), BF16_EAGER), ((1, 0.5, 2), BF16)],
)
def test_bf16_is_taken_where_it_is_clearly_faster(
    work: Any, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], wanted: Any
) -> None:
    formats = (FP32, BF16, BF16_EAGER)
    monkeypatch.setattr(module, "_timed", lambda *_: dict(zip(formats, seconds, strict=True)))
    assert step_format("auto", work.model(), batch_of(work))[0] == wanted


def test_attention_is_given_back(work: Any) -> None:
    model = work.model()
    inputs = {name: value for name, value in batch_of(work).items() if name != "labels"}
    with torch.no_grad():
        fused = model(**inputs).logits
        with attention_of(model, BF16_EAGER):
            assert model.config._attn_implementation == "eager"
            torch.testing.assert_close(model(**inputs).logits, fused)
    assert model.config._attn_implementation == "sdpa"


@cpu_only
def test_bf16_with_plain_attention_trains(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_timed", lambda *_: {BF16: 2.0, BF16_EAGER: 1.0})
    said: list[str] = []
    model = work.model()
    trainer = work.fit(model, precision="bf16", epochs=4, learning_rate=5e-3, say=said.append)
    assert trainer.args.bf16 and "bf16 with eager attention" in said[0]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
