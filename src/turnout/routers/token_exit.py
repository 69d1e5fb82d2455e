"""Early exit while writing: a token leaves at the first layer whose state says enough.

For language models. A token that left passes the later layers unchanged and is read out at the end
by the host's own last norm and head; its keys and values are still written in every layer, so that
later tokens find them (CALM, Schuster et al. 2022, arXiv 2207.07061: their state propagation).
Criteria: ``confidence`` (CALM's softmax response, by the largest probability alone), ``state``
(CALM's hidden-state saturation), ``learned`` (a probe that predicts whether the layer's answer
differs from the last one's: CALM's early-exit classifier), ``patience`` (as many read-outs in a
row agree; PABEE, arXiv 2006.04152). ``confidence`` and ``patience`` read every layer out, which in
models with large vocabularies costs more than the layers: the share of work that is reported
counts no read-outs, the time does. Training pulls inner layers towards the last one as LayerSkip
does (arXiv 2404.16710), one layer a pass.

Symbols: CALM's threshold lambda on confidence c is ours on the score 1 - c.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout.errors import UserError
from turnout.flow import Flow
from turnout.objectives.exits import exits
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig


class TokenExitConfig(RouterConfig):
    """criterion: what makes a layer's state enough. hold_first: layers that every token runs."""

    kind: Literal["token-exit"] = "token-exit"
    site: Literal["layer"] = "layer"
    granularity: Literal["token"] = "token"
    criterion: Literal["learned", "confidence", "state", "patience"] = "learned"
    hold_first: Annotated[int, Field(ge=0)] = 1


class TokenExitRouter(Router):
    """Keeps a token running until a layer is enough; what left does not come back."""

    Config: ClassVar[type[RouterConfig]] = TokenExitConfig
    scored = True
    token_memory = frozenset({"alive", "state", "label", "streak"})
    config: TokenExitConfig

    def __init__(self, config: TokenExitConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        if any(site.stack == "encoder" for site in sites):
            raise UserError(
                "router 'token-exit' serves decoders that write text: set `stack: decoder` where "
                "there is one, or take router 'exit'"
            )
        if host.labels:
            raise UserError("router 'token-exit' is for language models; for labels take 'exit'")
        self.reads_out = config.criterion != "state"
        learned = config.criterion == "learned"
        self.probe = nn.Parameter(torch.zeros(len(sites), host.hidden + 1)) if learned else None
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place = self._place[site.key]
        if flow.training:
            if place == self._taught(flow):
                flow.memory[(site.key, "state")] = hidden_BTD
            return Route(site, torch.ones(*hidden_BTD.shape[:2], 1, device=hidden_BTD.device))
        score_BT = self._score(place, hidden_BTD, flow)
        alive_BT = score_BT > self.level(flow.budget)
        before = self._before(place, "alive", flow)
        if before is not None:
            alive_BT = alive_BT & before
            score_BT = score_BT * before  # what left needs nothing
        flow.memory[(site.key, "alive")] = alive_BT
        return Route(site, alive_BT.float()[:, :, None], score_BT[:, :, None])

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        place = self._taught(flow)
        state_BTD = flow.memory[(self.sites[place].key, "state")]
        if not self.reads_out or flow.read_out is None:
            return {}
        state_BTD = state_BTD[:, : logits.shape[1]]  # next tokens: the last one has no label
        inner = flow.read_out(state_BTD)
        probes = [] if self.probe is None else [self._probed(place, state_BTD.detach())]
        return {"exits": exits([inner], logits, labels, teacher, probes)}

    def _taught(self, flow: Flow) -> int:
        """The place whose read-out this training pass teaches."""
        return flow.seed % len(self.sites)

    def _score(self, place: int, hidden_BTD: Tensor, flow: Flow) -> Tensor:
        """How much the rest of the model is needed, 0 (not at all) .. 1, (B, T)."""
        key, criterion = self.sites[place].key, self.config.criterion
        if criterion == "learned":
            return self._probed(place, hidden_BTD)
        if criterion == "state":
            flow.memory[(key, "state")] = hidden_BTD
            before = self._before(place, "state", flow)
            if before is None:
                return torch.ones(hidden_BTD.shape[:2], device=hidden_BTD.device)
            alike = F.cosine_similarity(hidden_BTD.float(), before.float(), dim=-1)
            return ((1.0 - alike) / 2).clamp(0.0, 1.0)
        assert flow.read_out is not None
        logits = flow.read_out(hidden_BTD)
        if criterion == "confidence":
            top = logits.amax(-1, keepdim=True).float()
            return 1.0 - torch.exp(top - logits.float().logsumexp(-1, keepdim=True)).squeeze(-1)
        label = logits.argmax(-1)
        streak = torch.zeros_like(label, dtype=torch.float32)
        before, earlier = self._before(place, "label", flow), self._before(place, "streak", flow)
        if before is not None and earlier is not None:
            streak = torch.where(label == before, earlier + 1, streak)
        flow.memory[(key, "label")], flow.memory[(key, "streak")] = label, streak
        return 1.0 / (1.0 + streak)

    def _probed(self, place: int, hidden_BTD: Tensor) -> Tensor:
        """The probability that the last layer would say something else, (B, T)."""
        assert self.probe is not None
        weight = self.probe[place].float()
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            plain = F.layer_norm(hidden_BTD.float(), hidden_BTD.shape[-1:])
            return (plain @ weight[:-1] / len(weight) ** 0.5 + weight[-1]).sigmoid()

    def _before(self, place: int, name: str, flow: Flow) -> Tensor | None:
        """What was remembered at the site before this one."""
        if place == 0:
            return None
        return flow.memory.get((self.sites[place - 1].key, name))
