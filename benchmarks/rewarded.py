"""A policy that learns from rewards on a frozen host: its settings, curve and rewards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trained import Study, host_settings
from transformers import TrainerCallback, set_seed

import turnout
from turnout.execute.batches import inputs_of
from turnout.objectives import ObjectivesConfig
from turnout.routers.reward import quality, shares
from turnout.train.config import TrainConfig
from turnout.train.data import listed
from turnout.train.fit import fit

PRICE, OPEN = 0.3, 0.5  # OPEN: budget whose threshold, before calibration, is a half
POLICY = {"kind": "policy", "price": PRICE, "open": 1.0, "hold_first": 1}


def settings(seed: int, quick: bool) -> TrainConfig:
    """Of the dense host; the policy has the same steps."""
    return host_settings(seed, quick, router_learning_rate=2e-3)


class Curve(TrainerCallback):
    """Reward on validation rows, every so many steps."""

    def __init__(self, model: Any, study: Study, rows: Sequence[Any], every: int) -> None:
        self.model, self.study, self.rows, self.every = model, study, rows, every
        self.points: list[tuple[int, float]] = []
        self.first_N = self.last_N = np.zeros(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.note(state.global_step)

    def note(self, step: int) -> None:
        """A point."""
        self.last_N = rewards(self.model, self.rows, self.study)
        if not self.points:
            self.first_N = self.last_N
        self.points.append((step, float(self.last_N.mean())))


def learn(
    dense: Any, study: Study, config: TrainConfig, out: Path, train: Any = None
) -> tuple[Any, Curve]:
    """A policy on the frozen host, and its curve. train: other rows than the study's."""
    set_seed(config.seed)
    model = turnout.install(deepcopy(dense), [POLICY])
    model.turnout.budget = OPEN
    data = study.data
    rows = listed(data.validation.select(range(min(512, len(data.validation)))))
    steps = max(1, int(config.epochs * len(data.train) / config.batch_size))
    curve = Curve(model, study, rows, max(1, steps // 12))
    curve.note(0)
    # without references nothing is calibrated on the way: the threshold stays one half
    data = replace(data, train=data.train if train is None else train, references=None)
    shutil.rmtree(out, ignore_errors=True)  # the curve begins at the first step
    frozen = config.model_copy(update={"freeze": "host", "max_steps": steps})
    objectives = ObjectivesConfig(task=0.0, distill=0.0)
    fit(model, data, frozen, objectives, out, title="policy", callbacks=[curve])
    return model.eval(), curve


@torch.inference_mode()
def passes(model: Any, rows: Sequence[Any], study: Study) -> Iterator[tuple[Any, Any, Any]]:
    """Logits, labels and the share of the routed work of each sequence, a batch at a time."""
    was_training = model.training
    model.eval()
    (router,) = model.turnout.all_routers()
    for start in range(0, len(rows), 64):
        batch = [dict(row) for row in rows[start : start + 64]]
        labels = study.data.collate(batch)["labels"]
        logits = model(**inputs_of(model, batch, study.data.collate))["logits"]
        yield logits, labels, shares(model.turnout.current_flow(), router.sites, None).sum(1)
    model.train(was_training)


def rewards(model: Any, rows: Sequence[Any], study: Study) -> np.ndarray:
    """Reward of each row, (N,)."""
    found = [
        quality(logits, labels, "probability") - PRICE * spent
        for logits, labels, spent in passes(model, rows, study)
    ]
    return torch.cat(found).numpy()


def chance(dense: Any, share: float, seed: int) -> Any:
    """Random skipping at a share of the work."""
    skip = {"kind": "random-skip", "rate": 1 - share, "hold_first": POLICY["hold_first"]}
    model = turnout.install(deepcopy(dense), [skip]).eval()
    model.turnout.seed = seed
    return model
