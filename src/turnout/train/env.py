"""A routed host as a Gymnasium environment, so that any agent can learn its routes.

One episode is one labelled text. Before each routed block the agent sees the pooled state and how
deep it is, and says skip (0) or run (1). Each block that runs costs its share of the work times the
price; the quality of the answer is paid at the end. These are the states, actions and rewards of
the routers `policy` and `q-learning`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row, inputs_of
from turnout.execute.begin import token_mask
from turnout.execute.span import run_span
from turnout.routers.base import masked_mean
from turnout.routers.reward import quality as quality_of
from turnout.train.answers import paired
from turnout.train.prices import price_shares
from turnout.train.search import Found

try:
    import gymnasium
except ImportError:
    raise UserError("turnout.train.env needs Gymnasium: pip install 'turnout[rl]'") from None


class RoutingEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Episodes over labelled rows, drawn at random, or in their order with ``shuffle=False``.

    model: a host routed at site ``layer`` by one router, whose blocks are the decisions; that
    router is not asked. rows: encoded, with ``labels``. price: what running every block costs, in
    units of quality. quality: ``probability`` of the right answer, or ``correct``. None = as the
    router has them, if it is paid a reward, else 0.2 and ``probability``. Raises UserError for a
    model without such a router, or no rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        collate: Collate,
        *,
        price: float | None = None,
        quality: str | None = None,
        shuffle: bool = True,
    ) -> None:
        routing: Any = getattr(model, "turnout", None)
        routers = [] if routing is None else routing.all_routers()
        if len(routers) != 1 or routers[0].config.site != "layer":
            raise UserError("RoutingEnv needs a host with one router at site layer")
        if not len(rows):
            raise UserError("RoutingEnv needs at least one labelled row")
        self.model, self.rows, self.collate = model.eval(), rows, collate
        config = routers[0].config
        self.price = getattr(config, "price", 0.2) if price is None else price
        self.quality = getattr(config, "quality", "probability") if quality is None else quality
        self.shuffle = shuffle
        self.sites = routers[0].sites
        self.share = price_shares(routers[0]).tolist()
        width = routers[0].host.hidden
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width + 1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._next = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with another row. options: ``{"row": i}`` names it."""
        super().reset(seed=seed)
        if options and "row" in options:
            row = int(options["row"])
        elif self.shuffle:
            row = int(self.np_random.integers(len(self.rows)))
        else:
            row, self._next = self._next, (self._next + 1) % len(self.rows)
        batch = [dict(self.rows[row])]
        self._inputs = inputs_of(self.model, batch, self.collate)
        self._labels: Tensor = self.collate(batch)["labels"].to(self.model.device)
        self._place, self._spent, self._route = 0, 0.0, list[int]()
        with torch.inference_mode():
            self._hidden: Tensor = run_span(self.model, self._inputs, 0, self.sites[0].layer)
        return self._observe(), {"row": row}

    @torch.inference_mode()
    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run or skip the next block; the last step pays the quality."""
        site, runs = self.sites[self._place], bool(action)
        last = self._place == len(self.sites) - 1
        start = site.layer if runs else site.layer + 1
        stop = None if last else self.sites[self._place + 1].layer
        self._route.append(int(runs))
        reward = -self.price * self.share[self._place] * runs
        self._spent += self.share[self._place] * runs
        if stop is None:
            logits = run_span(self.model, self._inputs, start, None, self._hidden)["logits"]
            quality = self._judge(logits)
            info = {"route": self._route, "share": self._spent, "quality": quality}
            return self._observe(), reward + quality, True, False, info
        if start < stop:
            self._hidden = run_span(self.model, self._inputs, start, stop, self._hidden)
        self._place += 1
        return self._observe(), reward, False, False, {}

    def _judge(self, logits: Tensor) -> float:
        return float(quality_of(*paired(self.model, logits, self._labels), self.quality))

    def pooled(self) -> Tensor:
        """The mean state of the text where it stands, (D,), not normalised."""
        routing: Any = self.model.turnout
        batch, length = self._hidden.shape[:2]
        mask_BT = token_mask(routing, self.model, self._inputs, self.sites[0].stack, batch, length)
        return masked_mean(self._hidden, mask_BT)[0]

    def _observe(self) -> np.ndarray:
        pooled = self.pooled()
        state = F.layer_norm(pooled, pooled.shape).cpu().numpy()
        depth = self._place / len(self.sites)
        return np.append(state, depth).astype(np.float32)


def routes_of(env: RoutingEnv, act: Callable[[np.ndarray], Any]) -> Found:
    """The route that an agent takes for each row, for ``imitate`` to put into a policy.

    act: an observation to 0 or 1, as ``lambda seen: agent.predict(seen, deterministic=True)[0]``.
    Raises UserError for another action.
    """
    taken = [_episode(env, row, act) for row in range(len(env.rows))]
    dense = [_episode(env, row, lambda seen: 1)[1] for row in range(len(env.rows))]
    return Found(
        torch.tensor([route for route, _, _ in taken], dtype=torch.float32),
        torch.tensor([reward for _, reward, _ in taken]),
        torch.tensor(dense),
        torch.stack([states for _, _, states in taken]),
    )


def _episode(
    env: RoutingEnv, row: int, act: Callable[[np.ndarray], Any]
) -> tuple[list[int], float, Tensor]:
    """Route, reward and the pooled states on the way, (L, D), of one text."""
    seen, _ = env.reset(options={"row": row})
    total, ended, info, states = 0.0, False, dict[str, Any](), list[Tensor]()
    while not ended:
        states.append(env.pooled().cpu())
        action = int(act(seen))
        if not env.action_space.contains(action):
            raise UserError(f"the agent said {action}; an action is 0 (skip) or 1 (run)")
        seen, reward, ended, _, info = env.step(action)
        total += reward
    return info["route"], total, torch.stack(states)
