"""Training of noise: how large it is, an alarm, and the second pass of consistency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from turnout import objectives
from turnout.errors import UserError
from turnout.execute.batches import Collate, Row
from turnout.execute.mode import evaluating
from turnout.execute.routing import Routing
from turnout.noise import Noise
from turnout.train.answers import paired
from turnout.train.data import listed

EVERY = 50  # steps between looks at sigma
FAR = 10.0  # times the start, or its part: then sigma has collapsed, or exploded
ROWS = 32  # to a batch of measuring


def size_noise(
    model: PreTrainedModel,
    rows: Sequence[Row] | datasets.Dataset,
    collate: Collate,
    batches: int = 8,
) -> dict[str, float]:
    """Measure what the noise of a model is added to, and let sigma count in parts of it.

    The root of the mean square of each feed-forward network's output, and for each head of the
    logits about the mean of their row, over real tokens, with everything running and no noise.
    rows: encoded, labelled where the model needs it; collate: makes a batch of some. Returns the
    mean size by block and kind. Sigma stays what it is, relative to the new size. Raises UserError
    for a model without noise, and for no rows.
    """
    if not isinstance(rows, list):
        rows = listed(rows.select(range(min(len(rows), batches * ROWS))))  # type: ignore[union-attr]
    if not rows:
        raise UserError("size_noise needs at least one row of data")
    starts = range(0, min(len(rows), batches * ROWS), ROWS)
    return size_from(model, (collate([dict(r) for r in rows[i : i + ROWS]]) for i in starts))


@torch.no_grad()
def size_from(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], most: int = 8
) -> dict[str, float]:
    """``size_noise`` from batches that are made already, the first so many of them."""
    routing: Any = getattr(model, "turnout", None)
    if not isinstance(routing, Routing) or not routing.noise:
        raise UserError("this model has no noise; call turnout.install(model, noise=[...]) first")
    done = False
    for noise in routing.all_noise():
        noise.start_meter()
    try:
        with evaluating(model), routing.at(1.0):
            for batch in islice(batches, most):
                model(**{name: value.to(model.device) for name, value in batch.items()})
        done = True
    finally:
        for noise in routing.all_noise():
            noise.stop_meter(keep=done)
    return {_name(noise): round(float(noise.size.mean()), 6) for noise in routing.all_noise()}


def noise_facts(routing: Routing) -> dict[str, dict[str, Any]]:
    """By block and kind: mean sigma at the start and now, that of the prior, all relative to the
    measured size, which stands beside them; and whether sigma has ``collapsed`` or ``exploded``."""
    return {
        _name(noise): {
            "start": noise.config.start,
            "sigma": round(float(noise.sigma.detach().mean()), 6),
            "prior": noise.config.prior,
            "size": round(float(noise.size.mean()), 6),
            "state": _state(noise),
        }
        for noise in routing.all_noise()
    }


def noise_logs(routing: Routing | None) -> dict[str, float]:
    """Mean sigma by block and kind, for the log."""
    if routing is None:
        return {}
    return {f"sigma_{name}": fact["sigma"] for name, fact in noise_facts(routing).items()}


class NoiseCallback(TrainerCallback):
    """Says, once a kind of trouble, where sigma has gone to nothing or grown beyond all measure."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._told: set[str] = set()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step % EVERY == 0 or state.global_step == state.max_steps:
            self._judge(model.turnout, state.global_step)

    def _judge(self, routing: Routing, step: int) -> None:
        facts = noise_facts(routing)
        cures = {
            "collapsed": "raise objectives.kl, or set objectives.free_bits to 0",
            "exploded": "raise objectives.kl, or lower the noise's `prior`",
        }
        for state, cure in cures.items():
            names = [name for name, fact in facts.items() if fact["state"] == state]
            if names and state not in self._told:
                self._told.add(state)
                words = "a tenth of" if state == "collapsed" else "ten times"
                self.say(
                    f"noise {state}: step {step}: sigma is beyond {words} its start at "
                    f"{', '.join(names)}. Lower the learning rate of routers, or {cure}"
                )


def second_pass(
    model: nn.Module, host: PreTrainedModel, inputs: dict[str, Any], outputs: Any
) -> tuple[Tensor, Tensor]:
    """The task's loss of another pass, with noise (and routes, and dropout) of its own, and how far
    its answers are from those of the first (see ``objectives.consistency``)."""
    again = model(**inputs)
    labels, first, second = inputs.get("labels"), outputs["logits"], again["logits"]
    if not isinstance(first, Tensor):
        raise UserError("objectives.consistency: this model answers for several tasks at once")
    keep = None
    if labels is not None:
        (first, _), (second, labels) = paired(host, first, labels), paired(host, second, labels)
        keep = labels != -100 if labels.ndim == 2 else None
    return again["loss"], objectives.consistency(first, second, keep)


def _name(noise: Noise) -> str:
    return f"{noise.place.key}.{noise.config.kind}"


def _state(noise: Noise) -> str:
    now, start = float(noise.sigma.detach().mean()), noise.config.start
    if not now >= start / FAR:
        return "collapsed"
    return "exploded" if now > start * FAR else "steady"
