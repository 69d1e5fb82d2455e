"""A routed training step against a step of plain Trainer on the dense host.

Interleaved, one process, the same batch. Goals: at full budget at most 1.1x; less as the budget
falls.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from common import Benchmark, goal, main
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import turnout
from turnout.demo.data import host_path
from turnout.objectives import ObjectivesConfig
from turnout.train.config import TrainConfig
from turnout.train.fit import freeze, set_dropout
from turnout.train.saving import quiet_loading
from turnout.train.trainer import RoutedTrainer

BATCH, LENGTH = 32, 64
SKIP = {"kind": "random-skip", "granularity": "sequence"}
ROUTERS: dict[str, dict[str, Any] | None] = {
    "plain Trainer": None,
    "exit, everything runs": {"kind": "exit", "hidden": 384},
    "gate per token, everything runs": {
        "kind": "gate",
        "granularity": "token",
        "open": 30.0,
    },
    "random skip, 75 % run": {**SKIP, "rate": 0.25},
    "random skip, 50 % run": {**SKIP, "rate": 0.5},
    "random skip, 25 % run": {**SKIP, "rate": 0.75},
}


class Arm:
    """A trainer with its model, and one timed step."""

    def __init__(self, host: Any, router: dict[str, Any] | None) -> None:
        model = copy.deepcopy(host)
        set_dropout(model, 0.0, None)
        if router is not None:
            turnout.install(model, [router])
        freeze(model, "embeddings")
        arguments = TrainingArguments(
            output_dir="benchmarks/work/train_step",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            optim="adamw_torch_fused",
            max_steps=1000,
        )
        if router is None:
            self.trainer: Any = Trainer(model=model, args=arguments)
        else:
            self.trainer = RoutedTrainer(
                model=model, args=arguments, train_config=TrainConfig(), weights=ObjectivesConfig()
            )
        self.trainer.current_gradient_accumulation_steps = 1  # train() would set it
        self.trainer.create_optimizer()
        self.model = model.train()

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        start = time.perf_counter()
        self.trainer.training_step(self.model, dict(batch))
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return time.perf_counter() - start


def run() -> None:
    benchmark = Benchmark("train_step", "a routed training step costs what it should")
    if not benchmark.rows:
        with quiet_loading():
            host = AutoModelForSequenceClassification.from_pretrained(
                host_path(), num_labels=4, dtype=torch.float32
            )
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=generator)
        labels = torch.randint(0, 4, (BATCH,), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        arms = {name: Arm(host, router) for name, router in ROUTERS.items()}
        rounds = 6 if benchmark.quick else 20
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for round_ in range(rounds + 2):
            for name, arm in arms.items():
                spent = arm.step(batch)
                if round_ >= 2:
                    seconds[name].append(spent)
        dense = seconds["plain Trainer"]
        benchmark.add(
            {
                "arm": name,
                "time_ratio": statistics.median(a / b for a, b in zip(values, dense, strict=True)),
                "seconds": statistics.median(values),
                "tokens_per_second": BATCH * LENGTH / statistics.median(values),
                "rounds": rounds,
            }
            for name, values in seconds.items()
        )
    ratio = {row["arm"]: row["time_ratio"] for row in benchmark.rows}
    verdict = {
        name: goal(value, at_most=1.1) for name, value in ratio.items() if "everything" in name
    }
    verdict["half of the layers run"] = goal(ratio["random skip, 50 % run"], at_most=0.75)
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
