"""Learned gates: a score in (0, 1) for each unit and token or sequence; skipped below a threshold.

After GateSkip and SkipNet-style gates with a straight-through estimator (Bengio et al. 2013,
arXiv 1308.3432) on a binary concrete sample (Maddison et al. 2017, arXiv 1611.00712). Symbols:
their gate g is our weight, the logit alpha our ``logit``, the temperature lambda ``temperature``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout import select
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean


class GateConfig(RouterConfig):
    """shape: a linear map or an MLP with one hidden layer. shared: one gate for all layers (told
    the layer by a learned bias) or one per layer. open: initial logit, so that all runs at first.
    temperature: of the sampling noise in training; 0 draws nothing, a unit runs above one half."""

    kind: Literal["gate"] = "gate"
    shape: Literal["linear", "mlp"] = "linear"
    hidden: Annotated[int, Field(gt=0)] = 64
    shared: bool = False
    open: float = 3.0
    temperature: Annotated[float, Field(ge=0.0)] = 1.0


class Projection(nn.Module):
    """A score from a state. Not an nn.Linear, so adapter tools leave it alone.

    The products run in the host's number format, to cost little beside a fast host; what is
    decided from them is float32.
    """

    def __init__(self, width: int, hidden: int | None) -> None:
        super().__init__()
        inner = hidden or width
        self.inner = nn.Parameter(torch.randn(inner, width) / width**0.5) if hidden else None
        self.weight = nn.Parameter(torch.zeros(inner))

    def forward(self, state: Tensor) -> Tensor:
        """(..., D) to (...)."""
        scaled = F.layer_norm(state, state.shape[-1:])
        if self.inner is not None:
            scaled = F.gelu(F.linear(scaled, self.inner.to(scaled.dtype)))
        return (scaled @ self.weight.to(scaled.dtype)).float()


class GateRouter(Router):
    """A gate per site; straight-through in training, thresholded in inference."""

    Config: ClassVar[type[RouterConfig]] = GateConfig
    scored = True
    config: GateConfig

    def __init__(self, config: GateConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        hidden = config.hidden if config.shape == "mlp" else None
        keys = ["all"] if config.shared else [self._name(site) for site in sites]
        self.gates = nn.ModuleDict({key: Projection(host.hidden, hidden) for key in keys})
        self.bias = nn.Parameter(torch.full((len(sites),), config.open))
        self._place = {site.key: place for place, site in enumerate(sites)}

    @staticmethod
    def _name(site: Site) -> str:
        return site.key.replace(".", "_")

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        config = self.config
        gate = self.gates["all" if config.shared else self._name(site)]
        if config.granularity == "token":
            logit_BT = gate(hidden_BTD)
        else:
            logit_BT = gate(masked_mean(hidden_BTD, flow.mask_BT(site)))[:, None]
        logit_BT = logit_BT + self.bias[self._place[site.key]].float()
        if config.granularity == "batch":
            logit_BT = logit_BT.mean(0, keepdim=True).expand_as(logit_BT)
        score_BTU = logit_BT.sigmoid()[:, :, None]
        if not flow.training:
            hard = select.threshold(score_BTU, self.level(flow.budget))
        elif config.temperature == 0:
            hard = select.threshold(score_BTU.detach(), 0.5)
        else:
            hard = self._sample(site, hidden_BTD, logit_BT, flow)[:, :, None]
        weight = select.straight_through(hard, score_BTU) if flow.training else hard
        return Route(site, weight, score_BTU)

    def _sample(self, site: Site, hidden_BTD: Tensor, logit_BT: Tensor, flow: Flow) -> Tensor:
        """Sample open gates with probability sigmoid(logit / temperature), from the flow's seed."""
        salt = self._place[site.key]
        if self.config.granularity == "token":
            uniform_BT = flow.uniform_BT(hidden_BTD, site, 1, salt)
        else:
            uniform_BT = flow.uniform_B(hidden_BTD.shape[0], hidden_BTD.device, 1, salt)[:, None]
            if self.config.granularity == "batch":
                uniform_BT = uniform_BT[:1].expand_as(uniform_BT)
        return select.sample((logit_BT.detach() / self.config.temperature).sigmoid(), uniform_BT)
