"""The routing of one model: its routers, its dial, and the flow of the pass under way.

It is one child of the model, named ``turnout``, so all router weights lie under one name in the
state dict and travel with ``save_pretrained``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import UserError
from turnout.execute.begin import new_flow
from turnout.execute.by_row import decide_by_row
from turnout.execute.noise import NoiseDial
from turnout.execute.span import Span
from turnout.execute.writing import Writing
from turnout.flow import Flow
from turnout.hosts.family import Stack
from turnout.route import Route, Site, Trace, UnitCost
from turnout.routers.base import Router, RouterConfig, check_looks_back

_scopes: ContextVar[tuple[Trace, ...]] = ContextVar("turnout_traces", default=())


@contextmanager
def trace() -> Iterator[Trace]:
    """Collect the routes of the forward passes inside: the trace of the last one, by site key."""
    collected = Trace()
    token = _scopes.set((*_scopes.get(), collected))
    try:
        yield collected
    finally:
        _scopes.reset(token)


class Routing(NoiseDial, nn.Module):
    """Routers by name, trained noise, and the state of the pass under way.

    budget: share of the routed work that may be spent, 0..1; set it at any time.
    block_costs: work of every block of the model, routed or not, by (stack, layer).
    units: what the host lacks and routers choose from (adapters), by stack and layer.
    noise: trained noise, by stack, layer and kind; ``noise_scale`` is its dial.
    spec: what the model's config says of its routers; the dials are kept there for saving.
    seed: repeats the paths of random routers in inference; None draws a new one each pass, and one
    for all passes of a call of ``generate``.
    budget_B: a budget for each sequence of the passes that follow (see ``at``); None = one for all.
    writing: the call of ``generate`` under way.
    task: what passes without ``task_ids`` ask for; None = they do not say.
    """

    def __init__(
        self,
        routers: dict[str, Router],
        stacks: dict[str, Stack],
        block_costs: dict[tuple[str, int], UnitCost],
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.block_costs, self.spec = block_costs, spec
        self.routers = nn.ModuleDict(routers)
        self.units = nn.ModuleDict()
        self.noise = nn.ModuleDict()
        self.stacks = stacks
        self.seed: int | None = None
        self.task: str | None = None
        self.budget_B: Tensor | None = None
        self.writing: Writing | None = None
        self.span: Span | None = None
        self._flow: Flow | None = None
        self._seen: Callable[[Flow], None] | None = None
        self._under_way = self._alone = False
        self._ordered: dict[str, str] = {}
        self._by_site = {site.key: router for router in routers.values() for site in router.sites}

    @property
    def budget(self) -> float:
        """The dial: share of the routed work that may be spent, 0..1."""
        return self.spec["budget"]

    @budget.setter
    def budget(self, value: float) -> None:
        _check_budget(value)
        self.spec["budget"] = float(value)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that a pass may ask for."""
        return self.spec.get("tasks", [])

    @contextmanager
    def at(self, budget: float | Sequence[float]) -> Iterator[None]:
        """Spend this budget inside, then go back to the earlier one. Several: one for each sequence
        of a batch, or for each prompt of ``generate``."""
        before, before_B = self.budget, self.budget_B
        if isinstance(budget, Sequence):
            for each in budget:
                _check_budget(each)
            self.budget_B = torch.tensor([float(each) for each in budget])
        else:
            self.budget, self.budget_B = budget, None
        try:
            yield
        finally:
            self.budget, self.budget_B = before, before_B

    @property
    def sites(self) -> tuple[Site, ...]:
        """All routed sites, in the order of their routers."""
        return tuple(site for router in self.all_routers() for site in router.sites)

    def part_of_block(self, site: Site) -> float:
        """Work of a site as a part of its whole block, by FLOPs a row."""
        return site.whole.row / self.block_costs[(site.stack, site.layer)].row

    def all_routers(self) -> list[Router]:
        """The routers, in the order they were given."""
        return list(self.routers.values())  # type: ignore[arg-type]

    def router_of(self, site: Site) -> Router:
        """The router that serves a site."""
        return self._by_site[site.key]

    def config_of(self, site: Site) -> RouterConfig:
        """The config of the router that serves a site."""
        return self.router_of(site).config

    def replace(self, name: str, router: Router) -> None:
        """Put another router in the place of one, for the same sites; ``spec`` is not changed, so a
        model that was saved before is not this one."""
        self.routers[name] = router
        self._by_site |= {site.key: router for site in router.sites}

    def keep_order(self, place: str, order: Tensor) -> None:
        """Note the order of the neurons of a block's experts; it is saved with the weights, which
        stand in that order."""
        name = f"order_{place.replace('.', '_')}"
        self.register_buffer(name, order)
        self._ordered[place] = name

    @property
    def orders(self) -> dict[str, Tensor]:
        """The order of the neurons of each block with experts, by stack and layer."""
        return {place: self.get_buffer(name) for place, name in self._ordered.items()}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        """Ask the router that serves a site."""
        router = self._by_site[site.key]
        if flow.budget_B is None:
            return router.decide(site, hidden_BTD, flow)
        return decide_by_row(router, site, hidden_BTD, flow)

    def check_writes(self) -> None:
        """Raise UserError where a text cannot be written token by token."""
        budgets = [self.budget] if self.budget_B is None else self.budget_B.tolist()
        if self.all_routers() and min(budgets) == 0.0:
            raise UserError(
                "a budget of 0 would run nothing, and an answer would say nothing: set "
                "model.turnout.budget above 0"
            )
        check_looks_back(self.all_routers(), "and a text that is being written has no end yet")

    @contextmanager
    def writes(self, writing: Writing) -> Iterator[None]:
        """All passes inside are of one call of ``generate``."""
        before, self.writing = self.writing, writing
        try:
            yield
        finally:
            self.writing = before

    def current_flow(self) -> Flow:
        """The pass under way, or the last one: its trace and what the routers remembered."""
        if self._flow is None:
            raise UserError("there was no forward pass of this routed model yet")
        return self._flow

    def open_flow(self) -> Flow:
        """The pass under way. Raises UserError outside of one: an earlier pass's mask and budget
        would be wrong."""
        if self._flow is None or not self._under_way:
            raise UserError(
                "a routed block ran outside of its model: call the model that turnout.install "
                "was given, not one of its parts, and not its forward method"
            )
        return self._flow

    def new_flow(self, model: nn.Module, inputs: dict[str, Any]) -> Flow:
        """The flow of a new pass with these model inputs."""
        return new_flow(self, model, inputs)

    def begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook of the model: start a pass. Takes ``task_ids`` out where the model's own
        forward knows nothing of them."""
        if model.training:
            _check_layerdrop(model)
        inputs = {**dict(zip(forward_names(type(model)), args, strict=False)), **kwargs}
        asked = inputs.get("output_attentions")
        if model.config.output_attentions if asked is None else asked:  # type: ignore[union-attr]
            warnings.warn(
                "output_attentions: a routed block gives the attention of the rows that it ran, "
                "packed, and a block that no row ran gives none; look at attention with budget 1 "
                "of learned routers, or without routers",
                stacklevel=2,
            )
        self._flow = self.new_flow(model, inputs)
        self._under_way = True
        if "task_ids" in kwargs and "task_ids" not in forward_names(type(model)):
            kwargs = {name: value for name, value in kwargs.items() if name != "task_ids"}
        return args, kwargs

    def begin_alone(
        self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook of an encoder: a pass of its own, unless the model's is under way."""
        if not self._under_way:
            inputs = {**dict(zip(forward_names(type(encoder)), args, strict=False)), **kwargs}
            self._flow = self.new_flow(encoder, inputs)
            self._under_way = self._alone = True

    def end_alone(self, encoder: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """Forward hook of an encoder: the end of a pass of its own."""
        if self._alone:
            self._alone = False
            self._collect(self.current_flow())
            self.close()

    def end(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """Forward hook of the model: let routers finish, hand the trace to open scopes."""
        flow = self.current_flow()
        self.close()
        flow.inputs.pop("past_key_values", None)  # the last pass is kept, its cache need not be
        if flow.trace:
            for router in self.all_routers():
                outputs = router.finish(outputs, flow)
            self._collect(flow)
        return outputs

    @contextmanager
    def watched(self, seen: Callable[[Flow], None]) -> Iterator[None]:
        """Tell ``seen`` of each pass inside, once it is over."""
        before, self._seen = self._seen, seen
        try:
            yield
        finally:
            self._seen = before

    def _collect(self, flow: Flow) -> None:
        """Put the routes of a pass into the scopes that wait for them."""
        if self._seen is not None:
            self._seen(flow)
        for collected in _scopes.get():
            collected.update(flow.trace)
            collected.mask_BT.update(flow.trace.mask_BT)
            collected.shape_BT.update(flow.trace.shape_BT)
            collected.entered.update(flow.trace.entered)
            collected.written.update(flow.trace.written)
            collected.memory.update(flow.memory)

    def close(self) -> None:
        """No block may run until the next pass begins."""
        self._under_way = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """A copy without the pass under way, whose tensors belong to another graph."""
        flow, self._flow = self._flow, None
        try:
            copy = self.__class__.__new__(self.__class__)
            memo[id(self)] = copy
            from copy import deepcopy

            copy.__dict__.update(deepcopy(self.__dict__, memo))
            return copy
        finally:
            self._flow = flow


def _check_budget(value: Any) -> None:
    if not (isinstance(value, Real) and 0.0 <= float(value) <= 1.0):
        raise UserError(f"budget must be a number from 0 to 1, got {value!r}")


def _check_layerdrop(model: nn.Module) -> None:
    """Raise UserError where the host itself would leave out whole blocks in training, unseen."""
    config: Any = model.config
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if rate := getattr(config, name, 0.0):
            raise UserError(
                f"config.{name} is {rate}: in training the host would leave out blocks behind the "
                f"routers. Load it with {name}=0.0; the router `random-skip` does the same in sight"
            )


@cache
def forward_names(model_class: type[nn.Module]) -> tuple[str, ...]:
    """The names of the arguments of a class's forward method, in their order."""
    return tuple(inspect.signature(model_class.forward).parameters)[1:]
