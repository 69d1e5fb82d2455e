"""Install routers on an unmodified Transformers model, and take them off again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.attend import watch_attention
from turnout.execute.routing import Routing
from turnout.hosts.attach import BlockView, blocks_of, find_family, price, restore, site_of
from turnout.hosts.linear import matrix_of
from turnout.route import Site, UnitCost
from turnout.routers import ROUTERS, HostShape, Router, RouterConfig
from turnout.units.experts import check_own, check_split, reorder
from turnout.units.peft import fill, lora_fields, read_lora
from turnout.wiring import attach, new_bank, split

RouterSpec = RouterConfig | dict[str, Any] | str
_OWN = "scope last attends halves copies adapters handle".split()
_MARKS = ("_turnout", *(f"_turnout_{name}" for name in _OWN))


def parse_router(spec: RouterSpec) -> RouterConfig:
    """A router's config from its kind, a dict, or a config; UserError names the wrong field."""
    if isinstance(spec, RouterConfig):
        return spec
    if not isinstance(spec, str | dict):
        raise UserError(
            f"a router is given by its kind, a dict of fields or a config, got {spec!r}"
        )
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    config = ROUTERS[str(fields.get("kind", ""))].Config
    try:
        return config.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([str(fields["kind"]), *(str(part) for part in first["loc"])])
        allowed = ""
        if first["type"] == "extra_forbidden":
            allowed = f"; its fields are {', '.join(config.model_fields)}"
        raise UserError(
            f"router {where}: {first['msg']}, got {first['input']!r}{allowed}"
        ) from None


def install(
    model: PreTrainedModel, routers: Sequence[RouterSpec] | RouterSpec, *, ordered: bool = False
) -> PreTrainedModel:
    """Add routers, or one, to a model, in place, and return it.

    The model keeps its class, its state-dict keys and its forward; its blocks get routed classes
    and it gets one new child, ``model.turnout``. ordered: neurons stand in the order of the experts
    already, as in a saved model. Raises UserError for an unknown family, a router
    that finds no site, or two routers at one site. Nothing is changed when it raises.
    """
    if hasattr(model, "turnout"):
        raise UserError("this model is routed already; call turnout.uninstall(model) first")
    alone = isinstance(routers, str | dict | RouterConfig)
    configs = [parse_router(spec) for spec in ([routers] if alone else routers)]
    if not configs:
        raise UserError("install needs at least one router, for example {'kind': 'exit'}")
    family = find_family(model)
    views = blocks_of(model, family)
    hidden = _hidden(configs, views)
    if hidden:
        _check_hides(model)
    built = _build(configs, views, host_shape(model), hidden)
    for view in views:
        _check_block(model, view)
    _warn_of_leaks(built.values(), model)
    device = next(model.parameters()).device
    stacks = {view.stack.name: view.stack for view in views}
    costs = {(view.stack.name, view.layer): price(view, "layer") for view in views}
    spec = {"version": 1, "routers": [c.model_dump(mode="json") for c in configs], "budget": 1.0}
    routing = Routing(built, stacks, costs, spec).to(device)
    by_key = {site.key: site for site in routing.sites}
    watched = _watched(routing)
    _check_units(routing, watched)
    heads = any(site.kind == "head" for site in routing.sites)
    attention = watch_attention(model) if watched or heads else None
    for view in views:
        attach(model, view, routing, by_key, view.stack.name in hidden, watched)
        if not ordered:
            split(view, routing, by_key)
    model.add_module("turnout", routing)
    routing.train(model.training)
    handles = (
        model.register_forward_pre_hook(routing.begin, with_kwargs=True),
        model.register_forward_hook(routing.end, with_kwargs=True),
    )
    object.__setattr__(model, "_turnout_hooks", handles)
    object.__setattr__(model, "_turnout_attention", attention)
    model.config.turnout = spec
    return model


def install_lora(
    model: PreTrainedModel,
    folders: Sequence[str | Path],
    router: RouterSpec = "gate",
    *,
    head: int | None = None,
) -> PreTrainedModel:
    """Add LoRA checkpoints that PEFT saved as units, with a router over them; in place.

    folders: one checkpoint a unit, in order. head: the checkpoint whose trained head (PEFT's
    modules_to_save) goes into the model; None = none of them has one. router: as for ``install``;
    site, number, rank and targets come from the checkpoints. The key-value cache stays in use.
    Raises UserError for a checkpoint that is not plain LoRA, or was trained for another host.
    """
    loras = [read_lora(folder) for folder in folders]
    fields = {"kind": router} if isinstance(router, str) else router
    if isinstance(fields, RouterConfig):
        fields = fields.model_dump(exclude_unset=True)
    if fields.get("site", "adapter") != "adapter":
        raise UserError(f"checkpoints are units at site adapter, got site: {fields['site']!r}")
    loras = [lora.for_host(model) for lora in loras]
    install(model, [{**fields, **lora_fields(model, loras, head)}])
    try:
        fill(model, loras, head)
    except UserError:
        uninstall(model)
        raise
    return model


def uninstall(model: PreTrainedModel) -> PreTrainedModel:
    """Take all routers off: keys, classes and outputs are the host's again, bit for bit."""
    if not hasattr(model, "turnout"):
        raise UserError("this model is not routed")
    for handle in model.__dict__.pop("_turnout_hooks"):
        handle.remove()
    attention = model.__dict__.pop("_turnout_attention")
    if attention is not None:
        model.set_attn_implementation(attention)
    for view in blocks_of(model, find_family(model)):
        routing: Any = model.turnout
        order = routing.orders.get(f"{view.stack.name}.{view.layer}")
        if order is not None:
            reorder(view, order.argsort())
    for module in model.modules():
        for name in _MARKS:
            module.__dict__.pop(name, None)
        restore(module)
    del model.turnout
    model.config.__dict__.pop("turnout")
    return model


def _watched(routing: Routing) -> dict[tuple[str, int], str]:
    """Whose attention must be seen, by stack and layer: in the block before each site that asks."""
    found: dict[tuple[str, int], str] = {}
    for router in routing.all_routers():
        for site in router.sites if router.watch else ():
            place = (site.stack, site.layer - 1)
            if found.setdefault(place, str(router.watch)) != router.watch:
                raise UserError(f"two routers look at {place} at different attention")
    return found


def _check_units(routing: Routing, watched: dict[tuple[str, int], str]) -> None:
    """What chooses heads needs the attention of its block for itself, and experts the ffn."""
    by_place: dict[tuple[str, int], dict[str, str]] = {}
    inner: set[tuple[str, int]] = set()  # blocks with adapters beside the neurons
    for router in routing.all_routers():
        lora = router.config.site == "adapter" and router.config.form == "lora"
        for site in router.sites:
            kinds = by_place.setdefault((site.stack, site.layer), {})
            kinds[site.kind] = router.config.granularity
            if lora and {"in", "out"} & set(router.config.targets):
                inner.add((site.stack, site.layer))
    for place, kinds in by_place.items():
        if {"ffn", "expert"} <= set(kinds):
            raise UserError(
                f"experts of {place[0]}.{place[1]} are routed: give that block's ffn no other "
                "router"
            )
        if "expert" in kinds and place in inner:
            raise UserError(
                f"experts of {place[0]}.{place[1]} are routed: adapters there cannot have the "
                "targets in and out"
            )
        if "head" not in kinds:
            continue
        where = f"heads of {place[0]}.{place[1]}"
        if "attention" in kinds or kinds.get("layer") == "token":
            raise UserError(
                f"{where} are routed: give that block's attention no other router, and a layer "
                "router there no granularity: token"
            )
        if place in watched:
            raise UserError(f"{where} are routed, and another router looks at their attention")


def _hidden(configs: Sequence[RouterConfig], views: list[BlockView]) -> frozenset[str]:
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


def _check_hides(model: PreTrainedModel) -> None:
    """Raise UserError where tokens cannot be taken out of attention by its mask."""
    config: Any = model.base_model.config
    name = config._attn_implementation
    if name not in ("sdpa", "eager"):
        raise UserError(
            f"visible: false needs a mask of every pair, but {type(model).__name__} attends by "
            f"{name!r}: load the host with attn_implementation='sdpa'"
        )


def _warn_of_leaks(routers: Iterable[Router], model: PreTrainedModel) -> None:
    """Warn where later tokens of a language model would decide for earlier ones."""
    shape = host_shape(model)
    for router in routers:
        by_token = router.config.granularity == "token"
        if router.pools and not by_token and not shape.labels and _decodes(router):
            warnings.warn(
                f"router {router.config.kind!r} decides for a whole {router.config.granularity} "
                "from all of its tokens; in a decoder that predicts tokens, later ones would then "
                "decide for earlier ones: use granularity: token, or stack: encoder",
                stacklevel=3,
            )


def _decodes(router: Router) -> bool:
    return any(site.stack == "decoder" for site in router.sites)


def _check_block(model: PreTrainedModel, view: BlockView) -> None:
    """Raise UserError for what would fail or be passed by once the classes are swapped."""
    if any(hasattr(module, "_hf_hook") for module in view.module.modules()):
        raise UserError(
            f"block {view.layer} of {view.stack.blocks} is spread over devices by accelerate "
            "(device_map), whose hooks would run it whole: load the model on one device"
        )
    if view.layer == 0 and view.stack.embeddings:
        try:
            model.base_model.get_submodule(view.stack.embeddings)
        except AttributeError as error:
            raise UserError(
                f"{type(model).__name__} has no {view.stack.embeddings!r} (embeddings of stack "
                f"{view.stack.name}): {error}; see docs/hosts.md"
            ) from None


def _build(
    configs: Sequence[RouterConfig],
    views: list[BlockView],
    host: HostShape,
    hidden: frozenset[str],
) -> dict[str, Router]:
    built: dict[str, Router] = {}
    taken: dict[str, str] = {}
    for config in configs:
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
            where = f"the ffn of {view.stack.name}.{view.layer}"
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


def host_shape(model: PreTrainedModel) -> HostShape:
    """Width, number of labels and kind of head of a model."""
    name = type(model).__name__
    classifies = "Classification" in name
    return HostShape(
        hidden=model.config.get_text_config().hidden_size,
        labels=int(model.config.num_labels or 0) if classifies else 0,
        per_token="TokenClassification" in name,
        causal=any(not stack.hideable for stack in find_family(model).stacks),
        vocabulary=int(getattr(model.config.get_text_config(), "vocab_size", 0) or 0),
    )
