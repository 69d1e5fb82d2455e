"""The checkpoints of a Trainer: going on from one, and coming back to the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

import turnout
from turnout.objectives import ObjectivesConfig
from turnout.train.config import TrainConfig
from turnout.train.trainer import RoutedTrainer


def gated(name: str, **fields: Any) -> PreTrainedModel:
    model = turnout.install(BY_NAME[name].build(), [{"kind": "gate", **fields}])
    for parameter in model.turnout.parameters():
        torch.nn.init.normal_(parameter)
    return model


class Rows(Dataset[Any]):
    """Labelled rows in the form of a host's own inputs."""

    def __init__(self, name: str, labels: int) -> None:
        inputs = BY_NAME[name].inputs("none")
        count = len(next(iter(inputs.values())))
        self.rows = [
            {**{k: v[i % count] for k, v in inputs.items()}, "labels": torch.tensor(i % labels)}
            for i in range(8)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


def trainer_of(name: str, model: PreTrainedModel, out: Path, **more: Any) -> RoutedTrainer:
    rows = Rows(name, model.config.num_labels)
    if name == "llama":
        for row in rows.rows:
            row["labels"] = row["input_ids"]
    plain: dict[str, Any] = dict(
        max_steps=4, save_strategy="steps", save_steps=2, per_device_train_batch_size=4
    )
    return RoutedTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            **{**plain, **more},
        ),
        train_dataset=rows,
        eval_dataset=rows,
        train_config=TrainConfig(),
        weights=ObjectivesConfig(),
    )


@pytest.mark.parametrize("name", ["vit", "llama", "bert"])
def test_trainer_resumes_to_equal_weights(name: str, tmp_path: Path) -> None:
    """Hosts whose saved keys differ from their own (ViT) and those with a cache (Llama)."""
    torch.manual_seed(0)
    whole = gated(name, granularity="token", site="ffn")
    again = gated(name, granularity="token", site="ffn")
    again.load_state_dict(whole.state_dict())
    trainer_of(name, whole, tmp_path / "run").train()
    trainer_of(name, again, tmp_path / "run").train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
    )
    ours, theirs = whole.state_dict(), again.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", ["vit", "llama", "bert"])
def test_load_best_model_at_end(name: str, tmp_path: Path) -> None:
    model = gated(name)
    trainer = trainer_of(
        name,
        model,
        tmp_path / "run",
        max_steps=3,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
    )
    scores = iter([0.5, 0.9, 0.1])
    trainer.task_score = lambda: next(scores)
    trainer.train()
    best = tmp_path / "run" / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    kept = turnout.load(best).state_dict()
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    last = turnout.load(best.with_name("checkpoint-3")).state_dict()
    head = "lm_head.weight" if name == "llama" else "classifier.weight"
    assert not torch.equal(kept[head], last[head])


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_routers_judge_an_answer_by_its_own_label(name: str, tmp_path: Path) -> None:
    """In a causal language model that is the next token."""
    model = turnout.install(BY_NAME[name].build(), [{"kind": "random-jump", "p": 0.0}])
    (router,) = model.turnout.all_routers()
    seen: list[float] = []

    def losses(flow: Any, logits: Tensor, labels: Tensor, teacher: Any) -> dict[str, Tensor]:
        seen.append(float(F.cross_entropy(logits.flatten(0, -2), labels.flatten()).detach()))
        return {}

    router.losses = losses
    trainer = trainer_of(name, model, tmp_path, max_steps=1, logging_steps=1)
    trainer.train()
    logged = next(log["loss_task"] for log in trainer.state.log_history if "loss_task" in log)
    assert seen[0] == pytest.approx(logged, rel=1e-3)


@pytest.mark.parametrize("routers", [[], [{"kind": "random-skip", "rate": 0.0}]])
def test_accumulation_of_a_causal_model_counts_labels(routers: list[Any], tmp_path: Path) -> None:
    """Rows with 2 to 9 labels; the loss shifts them by one."""
    found = []
    for accumulate in (1, 4):
        model = BY_NAME["llama"].build()
        if routers:
            turnout.install(model, routers)
        trainer = trainer_of(
            "llama", model, tmp_path / f"{accumulate}", max_steps=1, logging_steps=1,
            per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        for place, row in enumerate(trainer.train_dataset.rows):  # type: ignore[union-attr]
            row["labels"] = row["labels"].masked_fill(torch.arange(9) > place + 1, -100)
        trainer.train()
        found.append(next(log for log in trainer.state.log_history if "grad_norm" in log))
    for name in ("loss", "grad_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)
