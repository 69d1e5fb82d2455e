"""Go on learning a policy from feedback in use, within bounds.

Each update is one step of policy gradient on a batch of routes and their rewards. Three things keep
it from harm: the step is cut back until the policy's mean divergence from the last checked one is
within ``trust`` (a trust region, as in TRPO, arXiv 1502.05477, by backtracking; each window of
``check_every`` updates has its own); every ``check_every`` updates the reward on rows of our own,
whose labels are trusted, is compared with that of the best policy so far, and a fall beyond
``margin`` restores that policy; and after ``strikes`` such falls without a new best between them,
feedback is no longer listened to. Everything is written to a log; ``save`` and ``resume`` carry the
bounds over a restart.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.files import make_folder
from turnout.objectives.divergence import bernoulli_kl
from turnout.route import Trace
from turnout.routers.reward import reinforce
from turnout.train.online_files import read_state, write_state
from turnout.train.search import policy_of
from turnout.train.trusted import check_asked

HALVINGS = 8
COUNTED = {"updates": int, "fallen": int, "stopped": bool}


class OnlinePolicy:
    """Updates the policy of a routed model from rewards.

    guard: a function of no arguments that gives the mean reward of the model on trusted rows (see
    ``trusted_reward``); None = no check, only the trust region. least: chance of the unlikelier
    action while exploring; what is drawn so counts as if the policy had drawn it, or a policy that
    is sure of everything would never learn again. log: a file, a JSON object a line.
    Raises UserError for another model, a budget of 1 (at which all runs, whatever a policy says),
    settings that make no sense, and a guard that gives no finite number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rate: float = 2e-3,
        trust: float = 0.02,
        guard: Callable[[], float] | None = None,
        check_every: int = 10,
        margin: float = 0.01,
        strikes: int = 3,
        least: float = 0.05,
        log: str | Path | None = None,
    ) -> None:
        self.model, self.router = model, policy_of(model)
        check_asked(model)
        for name, value in (("rate", rate), ("trust", trust), ("margin", margin)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a finite number of at least 0, got {value!r}")
        for name, value in (("check_every", check_every), ("strikes", strikes)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value!r}")
        self.trust, self.guard, self.margin = trust, guard, margin
        if not 0 <= least <= 0.5:
            raise UserError(f"least must be a probability of at most a half, got {least!r}")
        self.check_every, self.strikes, self.least = check_every, strikes, least
        self.log = None if log is None else make_folder(Path(log).parent) / Path(log).name
        self.optimizer = torch.optim.Adam(self.router.parameters(), lr=rate)
        self.updates = self.fallen = 0
        self.stopped = False
        self._keep(None if guard is None else self._trusted())

    @contextmanager
    def explore(self) -> Iterator[None]:
        """Routes inside are drawn by the policy's probabilities, none below ``least``, so that
        there is something to learn from; the host stays as in inference."""
        self.router.explores = self.least
        try:
            yield
        finally:
            self.router.explores = None

    def update(self, trace: Trace, reward: Tensor | Sequence[float]) -> dict[str, Any]:
        """Learn from the trace of one pass that was made inside of ``explore``, and a reward a
        sequence, (B,). Returns the log's entry.

        Raises UserError for a reward that is not finite, too large to learn from, or of another
        length, for a pass whose states are not finite or whose routes were not drawn, and for a
        guard that gives no finite number; nothing is changed then.
        """
        reward_B = torch.as_tensor(reward).detach().float()
        states, actions = self._experience(trace, reward_B)
        if self.stopped:
            return self._write({"event": "ignored", "reward": float(reward_B.mean())})
        before = deepcopy(self.router.state_dict())
        self._step(states, actions, reward_B)
        divergence, halvings = self._backtrack(before, states)
        self.updates += 1
        entry = {
            "event": "update",
            "reward": float(reward_B.mean()),
            "divergence": divergence,
            "halvings": halvings,
        }
        if self.updates % self.check_every == 0:
            if self.guard is None:
                self._checked = deepcopy(self.router.state_dict())
                return self._write(entry)
            try:
                reward_now = self._trusted()
            except UserError:
                self.router.load_state_dict(before)
                self.optimizer.state.clear()
                self.updates -= 1
                raise
            entry.update(self._check(reward_now))
        return self._write(entry)

    def _experience(self, trace: Trace, reward_B: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and actions (B, L) of a pass."""
        missing = [site.key for site in self.router.sites if site.key not in trace]
        if missing:
            raise UserError(f"the trace holds no route of {missing[0]}: was it of another model?")
        routes = [trace[site.key] for site in self.router.sites]
        if any(route.log_prob_BT is None for route in routes):
            raise UserError("these routes were not drawn: make the pass inside of explore()")
        if not bool(reward_B.isfinite().all()):
            raise UserError("a reward is NaN or infinite: the update was left out")
        if reward_B.shape != (len(routes[0].weight_BTU),):
            raise UserError(
                f"rewards must be one a sequence, {(len(routes[0].weight_BTU),)}; got "
                f"{tuple(reward_B.shape)}"
            )
        first = self.router.sites[0].key
        keys = [site.key for site in self.router.sites]
        if self.router.config.decide == "input":
            keys = [first] * len(keys)
        states = torch.stack([trace.memory[(key, "state")] for key in keys], 1).detach()
        actions = torch.stack([route.weight_BTU[:, 0, 0] for route in routes], 1).detach()
        if not bool(states.isfinite().all()):
            raise UserError("the host's states hold NaN or infinity: the update was left out")
        return states, actions

    def _step(self, states_BLD: Tensor, actions_BL: Tensor, reward_B: Tensor) -> None:
        logit_BL = self._logits(states_BLD)
        log_prob_BL = F.logsigmoid(torch.where(actions_BL > 0, logit_BL, -logit_BL))
        loss = reinforce(reward_B, self.router.value(states_BLD[:, 0]), log_prob_BL.sum(1))
        self.optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in self.router.parameters() if p.grad is not None]
        # squares, as Adam keeps them: one that is infinite would stay so
        if not all(bool(grad.float().square().isfinite().all()) for grad in grads):
            raise UserError(
                f"rewards up to {float(reward_B.abs().max()):.3g} give a gradient that is not "
                "finite: the update was left out; rewards of the size of 1 are meant"
            )
        self.optimizer.step()

    def _logits(self, states_BLD: Tensor) -> Tensor:
        places = range(states_BLD.shape[1])
        return torch.cat([self.router.logit(p, states_BLD[:, p]) for p in places], 1)

    @torch.no_grad()
    def _backtrack(self, before: dict[str, Tensor], states: Tensor) -> tuple[float, int]:
        """Halve the step until the policy is within the trust region about the last checked one."""
        wanted = deepcopy(self.router.state_dict())
        now = self._logits(states)
        self.router.load_state_dict(self._checked)
        anchor = self._logits(states)
        self.router.load_state_dict(before)
        start = float(bernoulli_kl(self._logits(states), anchor))
        self.router.load_state_dict(wanted)
        divergence = float(bernoulli_kl(now, anchor))
        for halving in range(HALVINGS):
            if divergence <= max(self.trust, start):
                return divergence, halving
            part = 0.5 ** (halving + 1)
            self.router.load_state_dict(
                {
                    name: torch.lerp(before[name], value, part)
                    if value.is_floating_point()
                    else value
                    for name, value in wanted.items()
                }
            )
            divergence = float(bernoulli_kl(self._logits(states), anchor))
        self.router.load_state_dict(before)
        return start, HALVINGS

    def _trusted(self) -> float:
        """What the guard says."""
        assert self.guard is not None
        reward = float(self.guard())
        if not math.isfinite(reward):
            raise UserError(
                f"the guard gave {reward}: without a trusted reward nothing would stop bad "
                "feedback; the update was left out"
            )
        return reward

    def _trusted_of(self, policy: dict[str, Tensor]) -> float:
        """What the guard says of a policy that is not in use."""
        before = deepcopy(self.router.state_dict())
        self.router.load_state_dict(policy)
        try:
            return self._trusted()
        finally:
            self.router.load_state_dict(before)

    def _check(self, reward: float) -> dict[str, Any]:
        """Compare with the best policy so far on trusted rows; keep, or roll back."""
        assert self._best_reward is not None
        if reward < self._best_reward - self.margin:
            self._restore()
            self.fallen += 1
            self.stopped = self.fallen >= self.strikes
            return {"trusted": reward, "rolled_back": True, "stopped": self.stopped}
        self._checked = deepcopy(self.router.state_dict())
        if reward >= self._best_reward:  # a slow fall within the margin forgives nothing
            self.fallen = 0
            self._keep(reward)
        return {"trusted": reward, "rolled_back": False, "stopped": False}

    def _keep(self, reward: float | None) -> None:
        self._best = deepcopy(self.router.state_dict())
        self._checked = deepcopy(self._best)
        self._best_reward = reward

    def rollback(self) -> None:
        """Back to the best policy that was checked."""
        self._restore()
        self._write({"event": "rollback"})

    def _restore(self) -> None:
        self.router.load_state_dict(self._best)
        self._checked = deepcopy(self._best)
        self.optimizer.state.clear()

    def save(self, folder: str | Path) -> None:
        """Write all that the bounds remember, with the policy and its optimizer: a policy that was
        stopped stays so after ``resume``."""
        states = {"now": self.router.state_dict(), "best": self._best, "checked": self._checked}
        facts = {name: getattr(self, name) for name in COUNTED} | {"best": self._best_reward}
        write_state(folder, states, self.optimizer.state_dict()["state"], facts)

    def resume(self, folder: str | Path) -> None:
        """Go on where ``save`` was called. Raises UserError for a folder of another policy, or one
        that cannot be read; nothing is changed then."""
        states, adam, facts = read_state(folder, self.router.state_dict(), COUNTED)
        if self.guard is not None and facts["best"] is None:  # it was saved without a guard
            facts["best"] = self._trusted_of(states["best"])
        self.router.load_state_dict(states["now"])
        device = next(self.router.parameters()).device
        self._best, self._checked = (
            {name: value.to(device) for name, value in states[part].items()}
            for part in ("best", "checked")
        )
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": adam})
        for name in COUNTED:
            setattr(self, name, facts[name])
        self._best_reward = facts["best"]

    def _write(self, entry: dict[str, Any]) -> dict[str, Any]:
        entry = {"update": self.updates, "time": time.time(), **entry}
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return entry
