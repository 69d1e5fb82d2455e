"""What a person sees during training, and the alarm for routers that collapse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

WINDOW = 50
OPEN = 0.2  # share above the budget that is said at the end


class ProgressLine(TrainerCallback):
    """One bar: loss, share of work, metric and tokens per second."""

    def __init__(self, title: str, shown: bool = True) -> None:
        self.title, self.shown = title, shown
        self._bar: Any = None
        self._facts: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.shown and state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.title, unit="step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._bar is None or not logs:
            return
        names = {"loss": "loss", "share": "share of work", "tokens_per_second": "tokens/s"}
        for key, label in names.items():
            if key in logs:
                self._facts[label] = f"{logs[key]:.4g}"
        for key, value in logs.items():
            if key.startswith("eval_") and key.removeprefix("eval_") in ("loss", "score"):
                self._facts[key.replace("eval_", "validation ")] = f"{value:.4g}"
        self._bar.set_postfix(self._facts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CollapseCallback(TrainerCallback):
    """Says when a router has collapsed: a unit that never runs, or the same decision for all; and
    when gates stay open, whatever the budget is.

    Judged over the last WINDOW steps, from the routes alone, and said once a site.
    """

    def __init__(self, say: Callable[[str], None], budget: float) -> None:
        self.say, self.budget = say, budget
        self._use: dict[str, list[float]] = defaultdict(list)
        self._spread: dict[str, list[float]] = defaultdict(list)
        self._asked: list[float] = []  # shares of routers that are to learn the budget
        self._told: set[tuple[str, str]] = set()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        routing = model.turnout
        for key, route in routing.current_flow().trace.items():
            if route.score_BTU is None:
                continue
            score, share = route.score_BTU.detach().float(), float(route.share_BT.mean())
            self._use[key].append(share)
            if routing.router_of(route.site).learns_budget:
                self._asked.append(share)
            if score.numel() > 1:
                self._spread[key].append(float(score.std()))
        if state.global_step % WINDOW == 0 and state.global_step < state.max_steps:
            self._judge(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._asked:
            mean = sum(self._asked) / len(self._asked)
            if mean > self.budget + OPEN:
                self.say(
                    f"the gates run {mean:.0%} of their units, and {self.budget:.0%} was asked "
                    "for: train longer, raise objectives.budget, or lower the gates' `open`"
                )
        self._judge(state.global_step)

    def _judge(self, step: int) -> None:
        for key, values in self._use.items():
            mean = float(torch.tensor(values).mean())
            spread = self._spread.get(key) or [1.0]
            if mean < 0.01:
                self._tell(key, "never", f"step {step}: site {key} hardly ever runs ({mean:.1%})")
            elif mean < 0.99 and max(spread) < 1e-3:
                self._tell(key, "same", f"step {step}: site {key} decides the same for every input")
        for values in (self._use, self._spread, self._asked):
            values.clear()

    def _tell(self, key: str, kind: str, message: str) -> None:
        if (key, kind) not in self._told:
            self._told.add((key, kind))
            self.say(
                f"collapse: {message}. Lower the learning rate of routers, anneal the budget more "
                "slowly, or raise objectives.balance"
            )
