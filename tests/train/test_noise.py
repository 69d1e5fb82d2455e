"""turnout train with noise: alone and beside a router, the alarm, sizes, consistency."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hosts_table import BY_NAME
from rich.console import Console
from transformers import TrainingArguments

import turnout
from turnout import UserError
from turnout.files import read_json
from turnout.inspect import inspect
from turnout.measure.run import measure
from turnout.objectives import ObjectivesConfig
from turnout.predict import predict
from turnout.recipe import load
from turnout.run import open_run
from turnout.train import pipeline
from turnout.train.config import TrainConfig
from turnout.train.noise import EVERY, NoiseCallback, noise_facts
from turnout.train.trainer import RoutedTrainer

NOISE = """\
noise:
  - {kind: ffn, start: 0.1}
  - {kind: attention, mean: true, per: sequence}
objectives: {kl: 0.001, kl_anneal: 0.5, free_bits: 0.01, consistency: 0.5}
"""
ALONE = tiny.RECIPE.replace("routers:\n  - {kind: exit, granularity: sequence}\n", NOISE)
BESIDE = tiny.RECIPE.replace("measure:\n", f"{NOISE}measure:\n")


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"input_ids": [3 + n % 20, 4 + n % 30, 5, 6], "attention_mask": [1] * (3 + n % 2) + [1]}
        | {"attention_mask": [1, 1, 1, n % 2], "labels": n % 3}
        for n in range(count)
    ]


def noisy(**fields: Any) -> Any:
    noise = [{"kind": "ffn", **fields}, {"kind": "attention", **fields}]
    return turnout.install(BY_NAME["bert"].build(), noise=noise)


@pytest.mark.parametrize("text", [ALONE, BESIDE], ids=["alone", "beside"])
def test_a_recipe_trains_loads_predicts_and_is_measured(text: str, tmp_path: Path) -> None:
    recipe = load(tiny.save_recipe(tmp_path, text), ["measure.noise_scales=[0, 0.5, 1]"])
    said: list[str] = []
    pipeline.train(recipe, tmp_path / "run", say=said.append, progress=False)
    assert any("ffn noise, attention noise" in line for line in said)
    found = read_json(tmp_path / "run" / "training.json")["routed"]["found"]["noise"]
    assert set(found) == {f"encoder.{n}.{kind}" for n in (0, 1) for kind in ("ffn", "attention")}
    assert all(fact["size"] != 1.0 and fact["state"] == "steady" for fact in found.values())
    assert all(fact["sigma"] != pytest.approx(fact["start"], abs=1e-5) for fact in found.values())
    model: Any = turnout.load(tmp_path / "run")
    assert len(model.turnout.noise) == 4
    assert float(model.turnout.noise["ENCODER_0_ATTENTION"].answer.detach().abs().sum()) > 0
    test = str(tmp_path / "test.csv")
    lines = list(predict(tmp_path / "run", test, trace=True, paths=2, budget=1.0))
    spreads = [json.loads(line)["spread"] for line in lines]
    assert len(spreads) == 20 and max(spreads) > 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inspect(str(tmp_path / "run")))
    assert "ffn in 2 blocks, attention in 2 blocks; scale 1" in console.export_text()
    results = measure(open_run(tmp_path / "run"), recipe.measure, progress=False)
    arms = {arm.name: arm for arm in results.arms if arm.family == "noise"}
    assert list(arms) == ["noise-100", "noise-50", "noise-0"]
    draws = [arm.noise for arm in arms.values()]
    assert [(draw.scale, draw.draws) for draw in draws if draw] == [(1, 3), (0.5, 3), (0, 3)]
    assert arms["noise-0"].noise is not None and arms["noise-0"].noise.spread == 0
    routed = {arm.family for arm in results.arms}
    assert ("routed" in routed) == ("random" in routed) == (text is BESIDE)


def test_sizes_are_those_of_what_noise_is_added_to() -> None:
    model, seen, logits = noisy(layers=(1,)), [], []
    dense = model.bert.encoder.layer[1].output.dense
    handle = dense.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    attention = model.bert.encoder.layer[1].attention.self

    def attends(_: Any, args: Any) -> None:
        x, parts = args[0], []
        for name in ("query", "key"):
            part = getattr(attention, name)(x)
            parts.append(part.view(*part.shape[:2], 4, 8).transpose(1, 2))
        logits.append((parts[0] @ parts[1].transpose(2, 3) / 8**0.5).detach())

    other = attention.register_forward_pre_hook(attends)
    found = turnout.size_noise(model, rows(8), tiny.stacked)
    handle.remove()
    other.remove()
    mask = torch.tensor([row["attention_mask"] for row in rows(8)]).bool()
    size = model.turnout.noise["ENCODER_1_FFN"].size
    torch.testing.assert_close(size[0], seen[0][mask].square().mean().sqrt())
    assert found["encoder.1.ffn"] == pytest.approx(float(size), rel=1e-4)
    squares = [
        (text[:, real][:, :, real] - text[:, real][:, :, real].mean(-1, keepdim=True)) ** 2
        for text, real in zip(logits[0], mask, strict=True)
    ]
    count = sum(each[0].numel() for each in squares)
    wanted = (torch.stack([each.sum((1, 2)) for each in squares]).sum(0) / count).sqrt()
    torch.testing.assert_close(model.turnout.noise["ENCODER_1_ATTENTION"].size, wanted)
    again = turnout.size_noise(model, rows(8), tiny.stacked)
    assert again == found  # the noise that is there now is not in what is measured


def test_sizes_need_noise_and_rows() -> None:
    with pytest.raises(UserError, match="has no noise"):
        turnout.size_noise(turnout.install(BY_NAME["bert"].build(), "exit"), rows(2), tiny.stacked)
    with pytest.raises(UserError, match="at least one row"):
        turnout.size_noise(noisy(), [], tiny.stacked)


@pytest.mark.parametrize(("rho", "word"), [(-12.0, "collapsed"), (9.0, "exploded"), (-3.0, "")])
def test_the_alarm_says_once_when_sigma_is_beyond_all_measure(rho: float, word: str) -> None:
    model = noisy()
    for noise in model.turnout.all_noise():
        noise.rho.data.fill_(rho)
    said: list[str] = []
    alarm = NoiseCallback(said.append)
    for step in (EVERY - 1, EVERY, 2 * EVERY):
        state = SimpleNamespace(global_step=step, max_steps=200)
        alarm.on_step_end(None, state, None, model=model)
    assert len(said) == (1 if word else 0) and all(word in text for text in said)
    assert {fact["state"] for fact in noise_facts(model.turnout).values()} == {word or "steady"}


def trainer(model: Any, out: Path, **weights: float) -> RoutedTrainer:
    data: Any = [{k: torch.tensor(v) for k, v in row.items()} for row in rows()]
    return RoutedTrainer(
        model=model,
        args=TrainingArguments(
            str(out), max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True,
            logging_steps=1, disable_tqdm=True, save_strategy="no", learning_rate=1e-3,
        ),
        train_dataset=data,
        train_config=TrainConfig(router_learning_rate=0.1),
        weights=ObjectivesConfig(distill=0.0, **weights),
    )  # fmt: skip


def test_beta_rises_and_pulls_sigma_to_the_prior(tmp_path: Path) -> None:
    started = trainer(noisy(start=0.05, prior=0.5), tmp_path, task=0.0, kl=1.0, kl_anneal=1.0)
    started.train()
    sigmas = [log["sigma_encoder.0.ffn"] for log in started.state.log_history if "loss" in log]
    losses = [log["loss_kl"] for log in started.state.log_history if "loss_kl" in log]
    assert len(losses) == 3, "at the first step beta is 0, and the divergence is left out"
    assert (
        losses == sorted(losses, reverse=True) and sigmas == sorted(sigmas) and sigmas[-1] > 0.055
    )
    optimizer: Any = started.optimizer
    own = {id(parameter) for parameter in started.model.turnout.parameters()}  # type: ignore[union-attr]
    groups = [g for g in optimizer.param_groups if own & {id(p) for p in g["params"]}]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.0)]


def test_consistency_runs_a_second_pass_with_other_noise(tmp_path: Path) -> None:
    model = noisy(start=0.5)
    started = trainer(model, tmp_path, consistency=1.0)
    seeds = []
    hook = model.register_forward_hook(lambda m, _, __: seeds.append(m.turnout.current_flow().seed))
    started.train()
    hook.remove()
    assert len(seeds) == len(set(seeds)) == 8
    apart = [log["loss_consistency"] for log in started.state.log_history if "loss" in log]
    assert len(apart) == 4 and all(each > 0 for each in apart)
