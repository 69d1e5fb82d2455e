"""A mixture of units, weighted by the input, by the task that is asked for, or by both.

The weight of a unit is its part of a softmax over logits: W n(h) of the normalised state h (a
sparsely gated mixture, Shazeer et al. 2017, arXiv 1701.06538); z_t, learned for each task t (a
routing function over skills, Ponti et al. 2022, arXiv 2202.13914: their task-skill matrix Z is our
``task_logit``, with a softmax for their sigmoids); or W (n(h) * e_t) + z_t, with an embedding e_t
of the task (a gate a task over shared experts: Ma et al. 2018, doi 10.1145/3219819.3220007).
``top`` keeps the largest and lets them add up to 1; a single one keeps its part of all (Switch,
Fedus et al. 2021, arXiv 2101.03961), as a weight that is always 1 would teach nothing. Logits begin
uneven, or all rows would take the same units for ever. Some units can be set apart: ``shared`` ones
always run, with weight 1, and ``private`` ones serve a single task (Tang et al. 2020, doi
10.1145/3383313.3412236).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout import select
from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean
from turnout.routers.projection import Projection


class MixtureConfig(RouterConfig):
    """reads: what weights depend on. top: units a row takes beside the shared ones; None = all that
    it may. shared: so many of the units always run. private: units of each task alone. noise:
    standard deviation of what is added to the logits in training."""

    kind: Literal["mixture"] = "mixture"
    site: Literal["output", "adapter"] = "output"
    granularity: Literal["sequence", "token"] = "sequence"
    reads: Literal["input", "task", "both"] = "input"
    top: Annotated[int, Field(gt=0)] | None = None
    shared: Annotated[int, Field(ge=0)] = 0
    private: Annotated[int, Field(ge=0)] = 0
    noise: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def asks_task(self) -> bool:
        """Must a pass say which task is asked for."""
        return self.reads != "input" or self.private > 0


class MixtureRouter(Router):
    """Weights by softmax; units stand in the order shared, private by task, the others."""

    Config: ClassVar[type[RouterConfig]] = MixtureConfig
    weighs = True
    config: MixtureConfig
    may_TU: Tensor

    def __init__(self, config: MixtureConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        tasks = len(host.tasks)
        if config.asks_task and not tasks:
            raise UserError(
                "router 'mixture': reads: task, reads: both and private need names of tasks: "
                "turnout.install(model, routers, tasks=[...])"
            )
        (units,) = {site.units for site in sites}
        free = units - config.shared - config.private * tasks
        if free < 0:
            raise UserError(
                f"router 'mixture': {units} units are too few for {config.shared} shared ones and "
                f"{config.private} private ones for each of {tasks} tasks: set adapters"
            )
        choices = units - config.shared - config.private * max(0, tasks - 1)
        if config.top is not None and config.top > choices:
            raise UserError(
                f"router 'mixture': top {config.top} is more than the {choices} units that a row "
                "may choose from"
            )
        many = units - config.shared
        reads_input = config.reads != "task"
        self.gates = nn.ModuleList(
            Projection(host.hidden, None, many, uneven=True) if reads_input else nn.Identity()
            for _ in sites
        )
        ones = config.reads == "both"
        self.task = nn.Parameter(torch.ones(len(sites), tasks, host.hidden)) if ones else None
        named = config.reads != "input"
        self.task_logit = nn.Parameter(torch.randn(len(sites), tasks, many)) if named else None
        self.register_buffer("may_TU", _allowed(config.private, tasks, many), persistent=False)
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place = self._place[site.key]
        task_B = flow.asked_B() if self.config.asks_task else None
        logit_BTU = self.logit(place, self._state(site, hidden_BTD, flow), task_B)
        if flow.training and self.config.noise:
            uniform_BTU = self.uniform(site, hidden_BTD, flow, 13)[..., self.config.shared :]
            normal_BTU = torch.special.ndtri(uniform_BTU.clamp(1e-6, 1 - 1e-6))
            logit_BTU = logit_BTU + self.config.noise * normal_BTU
        if self.config.private and task_B is not None:
            logit_BTU = logit_BTU.masked_fill(~self.may_TU[task_B][:, None], -torch.inf)
        all_BTU = logit_BTU.softmax(-1)
        if self.config.top is not None:
            rank_BTU = select.rank(logit_BTU.detach())
            keep_BTU = select.threshold(rank_BTU, 1 - self.config.top / logit_BTU.shape[-1])
            logit_BTU = logit_BTU.masked_fill(keep_BTU == 0, -torch.inf)
        weight_BTU = logit_BTU.softmax(-1)
        if self.config.top == 1:
            weight_BTU = weight_BTU * all_BTU
        always_BTU = weight_BTU.new_ones(*weight_BTU.shape[:2], self.config.shared)
        return Route(site, torch.cat([always_BTU, weight_BTU], -1))

    def logit(self, place: int, state_BTD: Tensor, task_B: Tensor | None) -> Tensor:
        """Logits (B, T or 1, U) of the units that are not shared, float32."""
        if self.task is not None and task_B is not None:
            scaled = F.layer_norm(state_BTD.float(), state_BTD.shape[-1:])
            state_BTD = scaled * self.task[place, task_B][:, None]
        found = None
        if self.config.reads != "task":
            found = self.gates[place](state_BTD)
        if self.task_logit is not None and task_B is not None:
            named_B1U = self.task_logit[place, task_B][:, None].float()
            found = named_B1U if found is None else found + named_B1U
        assert found is not None
        return found

    def _state(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Tensor:
        if self.config.granularity == "token":
            return hidden_BTD
        return masked_mean(hidden_BTD, flow.mask_BT(site))[:, None]


def _allowed(private: int, tasks: int, units: int) -> Tensor:
    """Which of the units that are not shared a task may use, bool (tasks, U)."""
    may_TU = torch.ones(tasks, units, dtype=torch.bool)
    may_TU[:, : private * tasks] = False
    for task in range(tasks):
        may_TU[task, private * task : private * (task + 1)] = True
    return may_TU
