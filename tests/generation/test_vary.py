"""Quality against diversity: arms, perplexity under the dense host, results that go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from turnout.errors import UserError
from turnout.generation.arms import Arm, arms_of, default_arms, dropping
from turnout.generation.perplexity import surprise
from turnout.generation.settings import WriteSettings
from turnout.generation.variety_picture import frontier, picture
from turnout.generation.vary import Measured, VaryResults, VaryRow, begin, measure_arm
from turnout.generation.vary_run import table, vary_all
from turnout.generation.writer import Writer

PLAIN = WriteSettings(max_new_tokens=5, seed=0)
PROMPTS = ["the film", "a very good"]


def test_surprise_is_that_of_the_dense_host(writer: Writer, dense: Writer) -> None:
    pairs = [([2, 14, 16], [5, 6, 7]), ([2, 15], [20]), ([2, 15, 16, 17], [])]
    writer.model.turnout.budget = 0.3  # type: ignore[union-attr]
    found, plain = surprise(writer, pairs), surprise(dense, pairs, batch=1)
    assert [count for _, count in found] == [3, 1, 0]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in plain], abs=1e-4)
    with torch.inference_mode():
        logits = dense.model(torch.tensor([[2, 14, 16, 5, 6, 7]])).logits[0, 2:5].log_softmax(-1)
    by_hand = -sum(float(logits[place, token]) for place, token in enumerate((5, 6, 7)))
    assert plain[0][0] == pytest.approx(by_hand, abs=1e-4)
    assert writer.model.turnout.budget == 0.3  # type: ignore[union-attr]
    with pytest.raises(UserError, match="prompt is empty"):
        surprise(dense, [([], [5])])


def test_arms_of_texts(writer: Writer, dense: Writer) -> None:
    assert arms_of(["temperature=0.7,1", "top-p=0.9"]) == [
        Arm("temperature", 0.7), Arm("temperature", 1.0), Arm("top-p", 0.9)
    ]  # fmt: skip
    for text, said in (
        ("heat=1", "kinds are"),
        ("noise=loud", "wanted as noise="),
        ("budget=0", "budget: found"),
        ("dropout=1", "below 1"),
    ):
        with pytest.raises(UserError, match=said):
            arms_of([text])
    assert {arm.split("=")[0] for arm in default_arms(dense.model)} == {
        "temperature", "top-p", "min-p"
    }  # fmt: skip
    assert any(arm.startswith("budget=") for arm in default_arms(writer.model))


@pytest.mark.parametrize("kind", ["modules", "attention"])
def test_dropout_is_left_on_for_a_while(kind: str, dense: Writer) -> None:
    model: Any = dense.model
    if kind == "modules":
        config = hf.GPT2Config(
            vocab_size=34, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            bos_token_id=2, eos_token_id=3,
        )  # fmt: skip
        model = hf.GPT2LMHeadModel(config).eval()
    ids = torch.tensor([[2, 14, 16, 15]])
    with torch.inference_mode():
        plain = model(ids).logits
        with dropping(model, 0.5):
            assert not model.training
            assert not torch.equal(model(ids).logits, model(ids).logits)
        assert torch.equal(model(ids).logits, plain)
    assert not any(module.training for module in model.modules())
    with pytest.raises(UserError, match="no dropout"), dropping(nn.Linear(2, 2), 0.5):
        pass


def test_an_arm_that_is_hotter_is_more_varied_and_less_likely(writer: Writer) -> None:
    plain = PLAIN.but(max_new_tokens=12)
    cold, hot = (
        measure_arm(writer, PROMPTS, 6, plain, Arm("temperature", value)) for value in (0.1, 3.0)
    )
    assert cold is not None and hot is not None
    assert cold.perplexity.value < hot.perplexity.value
    assert cold.diversity["distinct_2"].value < hot.diversity["distinct_2"].value
    assert cold.diversity["self_bleu"].value > hot.diversity["self_bleu"].value
    assert cold.texts == 12 and cold.perplexity.low <= cold.perplexity.value


def test_results_go_on(routed_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "vary.json"
    said: list[str] = []

    def run(arms: list[str] | None, prompts: list[str] = PROMPTS) -> VaryResults | None:
        return vary_all(
            str(routed_folder), prompts, 3, PLAIN, out, arms=arms, device="cpu", say=said.append
        )

    first = run(["temperature=1", "dropout=0.2"])
    assert first is not None and not said
    both = run(["temperature=1", "budget=0.5"])
    assert both is not None and [row.kind for row in both.rows] == [
        "temperature", "dropout", "budget"
    ]  # fmt: skip
    assert both.rows[0] == first.rows[0] and said == ["1 arm(s) are there already"]
    assert 0 < both.rows[2].share < 1
    assert begin(out, str(routed_folder), PROMPTS, 3, PLAIN) == both
    with pytest.raises(UserError, match="other prompts"):
        run(["temperature=1"], ["a"])
    out.write_text('{"rows": 1}')
    with pytest.raises(UserError, match="not results of"):
        run(["temperature=1"])
    assert table(both).row_count == 3


def row(kind: str, value: float, perplexity: float, diversity: float) -> VaryRow:
    def exact(number: float) -> Measured:
        return Measured(value=number, low=number, high=number)

    return VaryRow(
        kind=kind, value=value, perplexity=exact(perplexity),
        diversity={"distinct_2": exact(diversity), "self_bleu": exact(1 - diversity)},
        share=1.0, seconds=1.0, tokens=3.0, texts=4,
    )  # fmt: skip


def test_the_frontier_and_its_picture(tmp_path: Path) -> None:
    rows = [
        row("temperature", 0.7, 4, 0.3), row("temperature", 1, 8, 0.6),
        row("budget", 0.5, 6, 0.2), row("budget", 0.9, 5, 0.5),
    ]  # fmt: skip
    for measure in ("distinct_2", "self_bleu"):
        assert [r.perplexity.value for r in frontier(rows, measure)] == [4, 5, 8]
    results = VaryResults(model="m", prompts=1, samples=4, settings="x", rows=rows)
    svg = picture(results, tmp_path / "a.svg").read_text()
    assert svg.startswith("<?xml") and "temperature" in svg and "budget" in svg
    assert svg == picture(results, tmp_path / "b.svg").read_text()
    with pytest.raises(UserError, match="no measure 'wit'"):
        picture(results, tmp_path / "c.svg", "wit")
    with pytest.raises(UserError, match="no arms"):
        picture(results.model_copy(update={"rows": []}), tmp_path / "c.svg")
    assert math.isfinite(rows[0].perplexity.value)
