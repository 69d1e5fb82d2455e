"""The trainer: scale of the loss, checkpointing, groups of the optimizer, exact resumption."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import pytest
import tiny
import torch
from transformers import BertForTokenClassification, PreTrainedModel, TrainerCallback

import turnout
from turnout import UserError
from turnout.execute.pool import predict_bulk
from turnout.objectives import ObjectivesConfig
from turnout.tasks.ner import NERConfig, NERTask
from turnout.train import fit as fit_module
from turnout.train.checkpoints import last_checkpoint
from turnout.train.config import TrainConfig
from turnout.train.data import encode
from turnout.train.fit import fit
from turnout.train.order import LengthOrder, grouped_steps
from turnout.train.step_format import StepFormat

ROUTERS = {
    "none": None,
    "exit": {"kind": "exit"},
    "gate": {"kind": "gate", "site": "ffn", "granularity": "token"},
    "random-jump": {"kind": "random-jump", "p": 0.5, "distribution": "learned"},
    "random-skip": {"kind": "random-skip", "rate": 0.5},
    "gate-recurrent": {"kind": "gate", "shape": "recurrent"},
    "gate-head": {"kind": "gate", "site": "head"},
    "gate-adapter": {"kind": "gate", "site": "adapter", "modulate": True},
    "gate-expert": {"kind": "gate", "site": "expert", "experts": 4, "granularity": "token"},
    "random-unit": {"kind": "random-unit", "site": "adapter", "rank": 2},
    "gate-copied": {
        "kind": "gate",
        "site": "expert",
        "experts": 2,
        "split": "copied",
        "keep": "top-k",
        "top": 1,
    },
    "attention": {"kind": "attention"},
    "attention-adapter": {"kind": "attention", "site": "adapter", "rank": 2},
    "token-attention": {"kind": "token-attention"},
    "token-attention-top-k": {"kind": "token-attention", "keep": "top-k", "visible": False},
    "cluster": {"kind": "cluster", "top": 2},
    "policy": {"kind": "policy"},
    "policy-head": {"kind": "policy", "site": "head"},
    "policy-input": {"kind": "policy", "decide": "input", "entropy": 0.1},
    "q-learning": {"kind": "q-learning", "replay": 16, "batch": 8},
}


def build(work: Any, kind: str) -> PreTrainedModel:
    model = work.model()
    torch.manual_seed(5)
    return model if ROUTERS[kind] is None else turnout.install(model, [ROUTERS[kind]])


def first_log(trainer: Any) -> dict[str, float]:
    return next(log for log in trainer.state.log_history if "grad_norm" in log)


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("kind", ["none", "exit"])
def test_accumulation_changes_neither_loss_nor_gradient(work: Any, kind: str) -> None:
    train = work.rows["train"].select(range(8))
    whole = work.fit(build(work, kind), "whole", train=train, batch_size=8, max_steps=1)
    parts = build(work, kind)
    split = work.fit(parts, "split", train=train, batch_size=4, accumulate=2, max_steps=1)
    for name in ("loss", "grad_norm"):
        assert first_log(split)[name] == pytest.approx(first_log(whole)[name], rel=1e-4)


@pytest.mark.parametrize("kind", ["none", "exit"])
def test_accumulation_counts_labels_not_batches(kind: str, tmp_path: Path) -> None:
    """Sentences of 1 to 8 words: the micro-batches hold quite different numbers of labels."""
    lines = [
        "\n".join(f"{word} {tag}" for word, tag in [("good", "B-A"), ("film", "O")] * half)
        for half in (4, 3, 1, 1)
    ]
    (tmp_path / "train.conll").write_text("\n\n".join(lines) + "\n")
    task = NERTask(NERConfig(train=str(tmp_path / "train.conll"), max_length=16))
    raw = task.load()
    raw["train"] = datasets.concatenate_datasets([raw["train"], raw["validation"]])
    data = encode(task, raw, tiny.tokenizer())
    logs = []
    for batch, accumulate in ((4, 1), (2, 2)):
        torch.manual_seed(3)
        model = BertForTokenClassification(tiny.bert_config(num_labels=len(task.labels)))
        if ROUTERS[kind] is not None:
            turnout.install(model, [ROUTERS[kind]])
        config = TrainConfig(
            batch_size=batch, accumulate=accumulate, max_steps=1, precision="fp32", dropout=0.0
        )
        out = tmp_path / f"{batch}"
        logs.append(first_log(fit(model, data, config, ObjectivesConfig(), out, progress=False)))
    for name in ("loss", "grad_norm"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-4)


REMEMBERING = ["gate-recurrent", "attention", "policy-input", "cluster", "random-jump"]


@pytest.mark.parametrize("kind", ["none", "exit", "gate", "random-skip", *REMEMBERING])
def test_activation_checkpointing_gives_the_same_weights(work: Any, kind: str) -> None:
    plain, saving = build(work, kind), build(work, kind)
    work.fit(plain, "plain", max_steps=2)
    work.fit(saving, "saving", max_steps=2, activation_checkpointing=True)
    ours, theirs = plain.state_dict(), saving.state_dict()
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-5) for k in ours)


class StopAt(TrainerCallback):
    """Raises at a step, as a kill would end it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("stop", [3, 7])  # in the first epoch of 5 steps, and in the second
def test_resumed_equals_uninterrupted(
    work: Any, kind: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = dict(epochs=2, save_every=1, dropout=0.1, learning_rate=0.01)
    model = build(work, kind)
    teacher = predict_bulk(work.model(), work.rows["train"], work.collate).logits
    whole = deepcopy(model)
    work.fit(whole, "whole", teacher_logits=teacher, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "ProgressLine", lambda *args, **kwargs: StopAt(stop))
        with pytest.raises(KeyboardInterrupt):
            work.fit(deepcopy(model), "stopped", teacher_logits=teacher, **settings)
    again = deepcopy(model)
    torch.manual_seed(99)
    trainer = work.fit(again, "stopped", teacher_logits=teacher, **settings)
    assert trainer.state.global_step == 10
    assert same(whole, again)


def test_routers_have_their_own_learning_rate(work: Any) -> None:
    model = build(work, "exit")
    trainer = work.fit(
        model, max_steps=1, learning_rate=1e-4, router_learning_rate=1e-2, weight_decay=0.1
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.add(name)
            router = name.startswith("turnout.")
            assert group["initial_lr"] == (1e-2 if router else 1e-4), name
            decays = not router and "bias" not in name and "LayerNorm" not in name
            assert group["weight_decay"] == (0.1 if decays else 0.0), name
    assert seen == set(names.values())


def test_a_router_may_ask_for_another_learning_rate(work: Any) -> None:
    model = work.model()
    gate = {"kind": "gate", "layers": [0]}
    turnout.install(model, [gate, {**gate, "layers": [1], "learning_rate": 0.3}])
    trainer = work.fit(model, max_steps=1, learning_rate=1e-4, router_learning_rate=1e-2)
    one, two = model.turnout.all_routers()
    rates = {p: g["initial_lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert {rates[p] for p in one.parameters()} == {1e-2}
    assert {rates[p] for p in two.parameters()} == {0.3}


def test_a_frozen_host_trains_only_routers(work: Any) -> None:
    model = build(work, "exit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work.fit(model, freeze="host", max_steps=3)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("turnout.") for name in changed)


def test_frozen_embeddings_stay(work: Any) -> None:
    model = build(work, "none")
    before = model.get_input_embeddings().weight.clone()
    head = model.classifier.weight.clone()
    work.fit(model, freeze="embeddings", max_steps=2)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert not torch.equal(model.classifier.weight, head)


def test_frozen_blocks_leave_the_head_and_the_routers_to_learn(work: Any) -> None:
    model = build(work, "exit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work.fit(model, freeze="blocks", max_steps=3)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"classifier.weight"} <= {name for name in changed if not name.startswith("turnout.")}
    assert any(name.startswith("turnout.") for name in changed)
    assert not any(".layer." in name or "embeddings" in name for name in changed)


def test_the_parts_of_the_loss_and_the_share_are_logged(work: Any) -> None:
    model = build(work, "gate")
    dense = work.model()
    trainer = work.fit(
        model,
        max_steps=1,
        teacher=dense,
        teacher_logits=predict_bulk(dense, work.rows["train"], work.collate).logits,
        weights=ObjectivesConfig(hidden=1.0, balance=0.5),
    )
    log = first_log(trainer)
    parts = {name for name in log if name.startswith("loss_")}
    assert parts == {"loss_task", "loss_distill", "loss_budget", "loss_balance", "loss_hidden"}
    assert 0 < log["share"] <= 1 and log["tokens_per_second"] > 0


def test_the_budget_is_annealed(work: Any) -> None:
    trainer = work.fit(build(work, "gate"), max_steps=1, budget=0.4)
    trainer.state.max_steps = 100
    seen = []
    for step in (0, 25, 50, 100):
        trainer.state.global_step = step
        seen.append(trainer.target_budget())
    assert seen == pytest.approx([1.0, 0.7, 0.4, 0.4])


def test_patience_stops_and_brings_the_best_back(work: Any) -> None:
    model = build(work, "exit")
    references = work.task.references(work.raw["validation"])
    trainer = work.fit(
        model, epochs=40, patience=2, learning_rate=0.02, references=references, evaluate_every=2
    )
    scores = [log["eval_score"] for log in trainer.state.log_history if "eval_score" in log]
    assert trainer.state.global_step < 200
    assert trainer.state.best_metric == max(scores)
    assert scores[-2:] != [max(scores)] or len(set(scores[-3:])) == 1
    with model.turnout.at(0.5):
        assert trainer.task_score() == pytest.approx(max(scores))


def test_going_on_keeps_the_number_format_and_the_patience(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = build(work, "exit"), []
    references = work.task.references(work.raw["validation"])
    settings: dict[str, Any] = dict(
        epochs=40, patience=3, learning_rate=0.0, router_learning_rate=0.0, evaluate_every=1,
        references=references,
    )  # fmt: skip
    monkeypatch.setattr(
        fit_module, "step_format", lambda *args: (StepFormat(bf16=True, attention="eager"), {})
    )
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "ProgressLine", lambda *args, **kwargs: StopAt(2))
        with pytest.raises(KeyboardInterrupt):
            work.fit(deepcopy(model), "stopped", precision="auto", **settings)
    monkeypatch.setattr(fit_module, "step_format", lambda *args: pytest.fail("timed again"))
    trainer = work.fit(model, "stopped", precision="auto", say=said.append, **settings)
    assert trainer.args.bf16 and any("tokens/s" in text for text in said)
    # one validation is the best, and three more without a gain end it: as without the stop
    assert trainer.state.global_step == 4
    assert "_original_forward" not in model.__dict__  # no autocast is left around the model
    with torch.no_grad():
        logits = model(**work.collate([dict(row) for row in work.rows["train"].select([0])])).logits
    assert logits.dtype == torch.float32


LENGTHS = [37 * place % 101 for place in range(800)]


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(grouped: bool) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        rows = LengthOrder(LENGTHS, 8, seed, grouped)
        rows.set_epoch(epoch)
        torch.rand(3)  # the state of torch's own generator does not matter
        return list(rows)

    assert order(0, 0) == order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(0, 0)) == list(range(800))


def test_steps_are_of_one_length_or_random_and_sorted() -> None:
    def spread(grouped: bool) -> float:
        lengths = [LENGTHS[row] for row in LengthOrder(LENGTHS, 8, 0, grouped)]
        steps = [lengths[start : start + 8] for start in range(0, 800, 8)]
        if not grouped:
            assert all(step == sorted(step, reverse=True) for step in steps)
        return fmean(max(step) - min(step) for step in steps)

    assert spread(True) < 10 < 60 < spread(False)


def test_steps_are_grouped_by_length_unless_words_are_labelled() -> None:
    texts = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [1]})
    words = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, 1]]})
    assert grouped_steps(TrainConfig(), texts)
    assert not grouped_steps(TrainConfig(), words)
    assert grouped_steps(TrainConfig(group_by_length=True), words)
    assert not grouped_steps(TrainConfig(group_by_length=False), texts)


def test_a_checkpoint_that_was_cut_off_is_passed_over(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(work, "none")
    work.fit(model, max_steps=2, save_every=1)
    cut = tmp_path / "out" / "checkpoint-2"
    (cut / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-1")
    assert not cut.exists()
    assert last_checkpoint(tmp_path / "nothing") is None
    (weights,) = (tmp_path / "out" / "checkpoint-1").glob("*.safetensors")
    (tmp_path / "out" / "checkpoint-best").mkdir()  # not one of Trainer's

    def refused(*_: Any) -> None:
        try:
            raise OSError("too many open files")
        except OSError as error:
            raise UserError("cannot read") from error

    with monkeypatch.context() as patched:
        patched.setattr("turnout.train.checkpoints.check_weights", refused)
        with pytest.raises(UserError, match="cannot read"):
            last_checkpoint(tmp_path / "out")
    assert weights.is_file()  # a disk that does not answer is no reason to remove it
    weights.write_bytes(weights.read_bytes()[:-100])
    assert last_checkpoint(tmp_path / "out") is None


def test_validation_does_not_change_what_is_learned(work: Any) -> None:
    weights = []
    for every in (1, 3, 100):
        model = build(work, "random-skip")
        work.fit(model, out=f"every-{every}", max_steps=6, dropout=0.1, evaluate_every=every)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
