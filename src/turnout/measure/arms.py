"""The models that are measured side by side, and one run of each over the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from turnout.execute.pool import BulkResult, Collate, Row, predict_bulk
from turnout.install import install
from turnout.measure.results import Family
from turnout.routers.base import Router, RouterConfig
from turnout.routers.random_skip import RandomSkipConfig, RandomSkipRouter
from turnout.routers.random_unit import RandomUnitConfig, RandomUnitRouter
from turnout.tasks.base import Task
from turnout.units.copies import CopyBank

LEAST = 1e-3  # of a random arm's budget: with nothing at all, a text could not be written
SEED = 0
# the fields that say where a router decides
PLACE = {"site", "granularity", "layers", "hold_first", "hold_last", "stack", "visible", "experts"}


@dataclass(frozen=True, eq=False)
class Entry:
    """One arm before it is measured.

    budget: what was asked for, as the report shows it; dial: what the model's dial is set to.
    router: which of several routed models it is, and place: where its routers decide, which its
    random arms share; None = there is one. noise: scale of its trained noise, and draws: how many
    passes with noise of their own its quality is the mean of; None = the model's own, one.
    """

    name: str
    family: Family
    model: PreTrainedModel
    budget: float | None = None
    dial: float | None = None
    router: str | None = None
    place: str | None = None
    noise: float | None = None
    draws: int = 1

    def run(
        self,
        rows: Sequence[Row],
        collate: Collate,
        batch_tokens: int,
        task: Task[Any] | None = None,
    ) -> BulkResult:
        """All rows, in the same groups of like length for every arm, as the task answers them; None
        = by logits."""
        routing: Any = getattr(self.model, "turnout", None)
        quiet = nullcontext()
        with (
            quiet if self.dial is None else routing.at(self.dial),
            quiet if self.noise is None else routing.noisy_at(self.noise),
        ):
            if task is None:
                return predict_bulk(self.model, rows, collate, batch_tokens)
            return task.run(self.model, rows, collate, batch_tokens)


def plain_entries(
    dense: PreTrainedModel,
    routed: PreTrainedModel | Mapping[str, PreTrainedModel],
    budgets: Sequence[float],
    static: Mapping[str, PreTrainedModel],
    scales: Sequence[float] = (),
    draws: int = 3,
) -> list[Entry]:
    """The dense host, each routed model at each budget and each model with noise at each of the
    scales, and the cut models."""
    many = isinstance(routed, Mapping)
    models = routed if isinstance(routed, Mapping) else {"routed": routed}
    return [
        Entry("dense", "dense", dense),
        *(
            Entry(
                f"{name}-{_label(b)}",
                "routed",
                model,
                b,
                b,
                name if many else None,
                place_of(model, name) if many else None,
            )
            for name, model in models.items()
            if not _only_noise(model)
            for b in sorted(set(budgets))[::-1]
        ),
        *(
            Entry(
                f"{name if many else 'noise'}-{'noise-' if many else ''}{_label(scale)}",
                "noise",
                model,
                router=name if many else None,
                noise=scale,
                draws=draws,
            )
            for name, model in models.items()
            for scale in sorted(set(_scales(model, scales)))[::-1]
        ),
        *(Entry(name, "static", model) for name, model in static.items()),
    ]


def _scales(model: PreTrainedModel, scales: Sequence[float]) -> Sequence[float]:
    """At which scales a model's noise is measured."""
    routing: Any = getattr(model, "turnout", None)
    if routing is None or not routing.noise:
        return ()
    return scales or ((1.0,) if _only_noise(model) else ())


def _only_noise(model: PreTrainedModel) -> bool:
    """Has a model trained noise and no router."""
    routing: Any = getattr(model, "turnout", None)
    return routing is not None and not routing.sites


def random_specs(configs: Sequence[RouterConfig]) -> list[RandomSkipConfig]:
    """Random skipping where these routers decide: the same sites, granularity, units and blocks
    that always run; without routers, all layers of a sequence. Where some decide about whole
    layers, those alone: the others decide about parts of the same work."""
    return [_skip_in_place_of(config) for config in _widest(configs) or [RandomSkipConfig()]]


def _skip_in_place_of(config: RouterConfig) -> RandomSkipConfig:
    """Random skipping where a router decides. How neurons are shared out is no matter where experts
    are drawn."""
    return RandomSkipConfig(rate=0.0, split="random", **config.model_dump(include=PLACE))


def _widest(configs: Sequence[RouterConfig]) -> Sequence[RouterConfig]:
    """Those over whole layers; where there are none, all."""
    return [config for config in configs if config.site == "layer"] or configs


def configs_of(model: PreTrainedModel) -> list[RouterConfig]:
    """The configs of a model's routers."""
    routing: Any = model.turnout
    return [router.config for router in routing.all_routers()]


def place_of(model: PreTrainedModel, name: str | None = None) -> str:
    """Where chance stands in for a routed model: ``layer-sequence``, ``ffn-token hold_first=1``;
    units of its own are the place of this model alone, ``adapter-sequence of NAME``."""
    own = [config for config in configs_of(model) if config.owns_units]
    if own:
        return f"{own[0].site}-{own[0].granularity} of {name or 'routed'}"
    return "+".join(map(_placed, _widest(configs_of(model))))


def _placed(config: RouterConfig) -> str:
    """Site and granularity, and what else is not as it is by default."""
    named = {"site", "granularity"}
    plain = RandomSkipConfig().model_dump(include=PLACE - named)
    fields = config.model_dump(include=PLACE - named)
    others = [f" {key}={fields[key]}" for key in sorted(plain) if fields[key] != plain[key]]
    return f"{config.site}-{config.granularity}" + "".join(others)


def random_entries(
    dense: PreTrainedModel,
    spent: Mapping[float, float],
    configs: Sequence[RouterConfig] = (),
    place: str | None = None,
) -> list[Entry]:
    """Random skipping in the dense host, once for each routed budget, where the routed model's
    routers decide (see ``random_specs``).

    spent: budget -> share of the host's work that the routed model really spent; that is what
    random skipping gets, so both do the same work, as far as its sites can spare it. The seed is
    fixed. place: of these routers, where several routed models are measured; None = there is one.
    """
    specs = random_specs(configs)
    own = any(spec.site == "expert" for spec in specs)  # whose neurons change their order
    sharing: dict[int, Any] = {} if own else {id(p): p for p in dense.parameters()}
    model = install(deepcopy(dense, sharing), specs).eval()
    routing: Any = model.turnout
    routing.seed = SEED
    whole = sum(cost.row for cost in routing.block_costs.values())
    part = sum(site.whole.row for site in routing.sites) / whole
    name = "random" if place is None else f"random-{place}"
    return [
        Entry(
            f"{name}-{_label(budget)}",
            "random",
            model,
            budget,
            min(1.0, max(LEAST, 1 - (1 - share) / part)),
            place=place,
        )
        for budget, share in spent.items()
    ]


def random_unit_entries(
    routed: PreTrainedModel, budgets: Sequence[float], place: str | None = None
) -> list[Entry]:
    """A routed model with units of its own, once for each budget, that gives each input units drawn
    at random, as many as its routers take. Routers of other units skip at random, by the budget.
    Parameters are shared. place: as of ``random_entries``."""
    name = "random" if place is None else f"random-{place}"
    entries = []
    for budget in budgets:
        model = deepcopy(routed, {id(p): p for p in routed.parameters()})
        routing: Any = model.turnout
        routing.seed = SEED
        for key, router in routing.routers.items():
            routing.replace(key, _by_chance(router, budget))
        entry = f"{name}-{_label(budget)}"
        entries.append(Entry(entry, "random", model, budget, budget, place=place))
    return entries


def _by_chance(router: Router, budget: float) -> Router:
    """What decides at random where a router decides."""
    config = router.config
    if not config.owns_units:
        return RandomSkipRouter(_skip_in_place_of(config), router.sites, router.host)
    units = min(site.units for site in router.sites)
    top = getattr(config, "top", None) or max(1, round(budget * units))
    chance = RandomUnitConfig(site=config.site, top=min(top, units), seed=SEED)  # type: ignore[arg-type]
    return RandomUnitRouter(chance, router.sites, router.host)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert a host in place, copies of its networks too; its routers keep full precision."""
    for name, child in model.named_children():
        if name != "turnout":
            child.to(dtype)
    for module in model.modules():
        if isinstance(module, CopyBank):
            module.to(dtype)
    return model


def _label(budget: float) -> str:
    """0.35 -> "35", 0.125 -> "12.5"."""
    return f"{budget * 100:g}"
