"""Routers and their sites from configs: what `install` adds to a model."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.routing import Routing
from turnout.hosts.attach import find_family
from turnout.hosts.linear import matrix_of
from turnout.hosts.price import price, site_of
from turnout.hosts.view import BlockView
from turnout.route import Site, UnitCost
from turnout.routers import ROUTERS, HostShape, Router, RouterConfig
from turnout.units.experts import check_own, check_split
from turnout.wiring import new_bank, output_bank


def hidden_stacks(configs: Sequence[RouterConfig], views: list[BlockView]) -> frozenset[str]:
    """Stacks whose skipped tokens are taken out of attention: one answer for all routers that skip
    attention there."""
    hidden = set()
    for name, hideable in {view.stack.name: view.stack.hideable for view in views}.items():
        here = [config for config in configs if config.stack in (None, name)]
        said = {config.visible for config in here if config.site in ("layer", "attention")}
        if len(said) > 1:
            raise UserError("visible must be the same for all routers at sites layer and attention")
        if False in said and not hideable:
            raise UserError(
                "visible: false removes tokens from attention: encoders only (set `stack: encoder` "
                "where there is one)"
            )
        if False in said:
            hidden.add(name)
    return frozenset(hidden)


def build(
    configs: Sequence[RouterConfig],
    views: list[BlockView],
    host: HostShape,
    hidden: frozenset[str],
) -> dict[str, Router]:
    built: dict[str, Router] = {}
    taken: dict[str, str] = {}
    for config in configs:
        if config.site == "output":
            every = [output_site(config, host)]
        else:
            every = [_site(view, config, view.stack.name in hidden) for view in views]
        _check_layers(config, every)
        sites = tuple(site for site in every if config.covers(site))
        name = f"{len(built)}_{config.kind}".replace("-", "_")
        if not sites:
            raise UserError(
                f"router {config.kind!r} finds no site: site={config.site}, stack={config.stack}, "
                f"layers={config.layers}, hold_first={config.hold_first}, hold_last="
                f"{config.hold_last}; the model has {', '.join(site.key for site in every)}"
            )
        for site in sites:
            if site.key in taken:
                raise UserError(f"two routers at site {site.key}: {taken[site.key]} and {name}")
            taken[site.key] = name
        if config.site == "expert":
            _check_experts(config, sites, views)
        built[name] = ROUTERS[config.kind](config, sites, host)
    return built


def _site(view: BlockView, config: RouterConfig, hidden: bool) -> Site:
    if config.site == "expert" and (own := view.own_experts) is not None:
        cost = UnitCost(row=2.0 * sum(p[0].numel() for p in own.parameters()))
        return site_of(view, "expert", units=own.num_experts, cost=cost, together=view.top)
    if config.site == "expert" and config.split == "copied":
        whole = price(view, "ffn")
        return site_of(view, "expert", units=config.experts, cost=whole, together=1)
    if config.site == "expert":
        return site_of(view, "expert", units=config.experts)
    if config.site == "head" and not view.heads:
        raise UserError(
            "heads of this host cannot be routed one by one: its record says that they depend on "
            "each other (docs/hosts.md)"
        )
    if config.site == "adapter":
        cost = UnitCost(row=new_bank(view, config).flops())
        return site_of(view, "adapter", units=config.adapters, cost=cost)
    return site_of(view, config.site, hidden)


def output_site(config: RouterConfig, host: HostShape) -> Site:
    """The site of the routing layer."""
    cost = UnitCost(row=output_bank(config, host.hidden).flops())
    return Site("output", "output", "output", 0, 1, config.adapters, cost, config.adapters)


def _check_experts(config: RouterConfig, sites: Sequence[Site], views: Sequence[BlockView]) -> None:
    served = {(site.stack, site.layer) for site in sites}
    copied = config.split == "copied"
    if copied and config.kind != "cluster" and getattr(config, "top", None) is None:
        raise UserError(
            f"router {config.kind!r}: experts that are copies need a fixed number of them for a "
            "token: a gate with `keep: top-k, top: 1`, or a cluster router"
        )
    for view in views:
        if (view.stack.name, view.layer) in served and view.own_experts is not None:
            if copied:
                raise UserError("split: copied copies a dense network; this host has experts")
            if getattr(config, "most", None) is not None:
                raise UserError("most: the number of experts is this host's own; leave it out")
            check_own(view.own_experts)
        elif (view.stack.name, view.layer) in served:
            where = f"the ffn of {view.place}"
            if not copied:
                check_split(view.neuron_count(), config.experts, where)
            into, out = view.neurons()
            for _, module in (*into, out):
                matrix_of(module)


def _check_layers(config: RouterConfig, sites: list[Site]) -> None:
    deepest = max(site.depth for site in sites)
    wrong = [n for n in config.layers or () if not -deepest <= n < deepest]
    if wrong:
        raise UserError(
            f"router {config.kind!r}: layers names {wrong}; the model has layers 0 to "
            f"{deepest - 1} (or -{deepest} to -1, from the end)"
        )


def watched_layers(routing: Routing) -> dict[tuple[str, int], str]:
    """Whose attention must be seen, by stack and layer: in the block before each site that asks."""
    found: dict[tuple[str, int], str] = {}
    for router in routing.all_routers():
        for site in router.sites if router.watch else ():
            place = (site.stack, site.layer - 1)
            if found.setdefault(place, str(router.watch)) != router.watch:
                raise UserError(f"two routers look at {place} at different attention")
    return found


def host_shape(model: PreTrainedModel, tasks: Sequence[str] = ()) -> HostShape:
    """Width, number of labels and kind of head of a model, and names of its tasks."""
    name = type(model).__name__
    classifies = "Classification" in name
    return HostShape(
        hidden=model.config.get_text_config().hidden_size,
        labels=int(model.config.num_labels or 0) if classifies else 0,
        per_token="TokenClassification" in name,
        causal=any(not stack.hideable for stack in find_family(model).stacks),
        vocabulary=int(getattr(model.config.get_text_config(), "vocab_size", 0) or 0),
        tasks=tuple(tasks),
    )
