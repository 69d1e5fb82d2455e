"""Install routers on an unmodified Transformers model, and take them off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.attend import watch_attention
from turnout.execute.block import RoutedBlock, RoutedEmbeddings
from turnout.execute.handle import BlockHandle
from turnout.execute.heads import HEAD_ROLES
from turnout.execute.leaves import ROLES
from turnout.execute.routing import Routing
from turnout.execute.scope import Scope, Stream
from turnout.hosts.attach import BlockView, blocks_of, find_family, price, restore, site_of, swap
from turnout.route import Site, SiteKind
from turnout.routers import ROUTERS, AnyRouterConfig, HostShape, Router, RouterConfig

RouterSpec = RouterConfig | dict[str, Any] | str
_adapter: TypeAdapter[Any] = TypeAdapter(AnyRouterConfig)
_PARTS = ("attention", "cross", "ffn")


def parse_router(spec: RouterSpec) -> RouterConfig:
    """A router's config from its kind, a dict, or a config; UserError names the wrong field."""
    if isinstance(spec, RouterConfig):
        return spec
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    ROUTERS[str(fields.get("kind", ""))]
    try:
        return _adapter.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"router {where}: {first['msg']}, got {first['input']!r}") from None


def install(model: PreTrainedModel, routers: Sequence[RouterSpec]) -> PreTrainedModel:
    """Add routers to a model, in place, and return it.

    The model keeps its class, its state-dict keys and its forward; its blocks get routed classes
    and it gets one new child, ``model.turnout``. Raises UserError for an unknown family, a router
    that finds no site, or two routers at one site. Nothing is changed when it raises.
    """
    if hasattr(model, "turnout"):
        raise UserError("this model is routed already; call turnout.uninstall(model) first")
    configs = [parse_router(spec) for spec in routers]
    if not configs:
        raise UserError("install needs at least one router, for example {'kind': 'exit'}")
    family = find_family(model)
    views = blocks_of(model, family)
    hidden = _hidden(configs, views)
    built = _build(configs, views, host_shape(model), hidden)
    for view in views:
        _check_block(model, view)
    device = next(model.parameters()).device
    stacks = {view.stack.name: view.stack for view in views}
    costs = {(view.stack.name, view.layer): price(view, "layer") for view in views}
    spec = {"version": 1, "routers": [c.model_dump(mode="json") for c in configs], "budget": 1.0}
    routing = Routing(built, stacks, costs, spec).to(device)
    by_key = {site.key: site for site in routing.sites}
    watched = _watched(routing)
    _check_heads(routing, watched)
    heads = any(site.kind == "head" for site in routing.sites)
    attention = watch_attention(model) if watched or heads else None
    for view in views:
        _attach(model, view, routing, by_key, hidden, watched)
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


def uninstall(model: PreTrainedModel) -> PreTrainedModel:
    """Take all routers off: keys, classes and outputs are the host's again, bit for bit."""
    if not hasattr(model, "turnout"):
        raise UserError("this model is not routed")
    for handle in model.__dict__.pop("_turnout_hooks"):
        handle.remove()
    attention = model.__dict__.pop("_turnout_attention")
    if attention is not None:
        model.set_attn_implementation(attention)
    for module in model.modules():
        for name in ("_turnout", "_turnout_scope", "_turnout_last", "_turnout_attends"):
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


def _check_heads(routing: Routing, watched: dict[tuple[str, int], str]) -> None:
    """What chooses heads needs the attention of its block for itself."""
    by_place: dict[tuple[str, int], dict[str, str]] = {}
    for router in routing.all_routers():
        for site in router.sites:
            kinds = by_place.setdefault((site.stack, site.layer), {})
            kinds[site.kind] = router.config.granularity
    for place, kinds in by_place.items():
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


def _hidden(configs: Sequence[RouterConfig], views: list[BlockView]) -> bool:
    """Are skipped tokens taken out of attention: one answer for all routers that skip attention."""
    said = {config.visible for config in configs if config.site in ("layer", "attention")}
    if len(said) > 1:
        raise UserError("visible must be the same for all routers at sites layer and attention")
    if False in said and not all(view.stack.hideable for view in views):
        raise UserError("visible: false removes tokens from attention: encoders only")
    return False in said


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
    configs: Sequence[RouterConfig], views: list[BlockView], host: HostShape, hidden: bool
) -> dict[str, Router]:
    built: dict[str, Router] = {}
    taken: dict[str, str] = {}
    for config in configs:
        every = [site_of(view, config.site, hidden) for view in views]
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
        built[name] = ROUTERS[config.kind](config, sites, host)
    return built


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


def _attach(
    model: PreTrainedModel,
    view: BlockView,
    routing: Routing,
    sites: dict[str, Site],
    hidden: bool,
    watched: dict[tuple[str, int], str],
) -> None:
    keys = {kind: f"{view.stack.name}.{view.layer}.{kind}" for kind in get_args(SiteKind)}
    mine = {kind: sites[key] for kind, key in keys.items() if key in sites}
    stream = Stream()
    scopes = {part: Scope(stream) for part in _PARTS if getattr(view.stack, part)}
    handle = BlockHandle(
        routing,
        view.stack.name,
        view.layer,
        view.depth,
        mine,
        view.stack.tuple_output,
        hidden,
        watched.get((view.stack.name, view.layer)),
        stream,
        scopes,
    )
    for part in scopes:
        found = list(view.leaves(part))
        for leaf, module in found:
            by_heads = part == "attention" and "head" in mine
            role = "merge" if by_heads and leaf.path == view.merge else leaf.role
            swap(module, (HEAD_ROLES if by_heads and role in HEAD_ROLES else ROLES)[role])
            module.__dict__["_turnout_scope"] = scopes[part]
            module.__dict__["_turnout_last"] = leaf is found[-1][0]
            above, _, name = leaf.path.rpartition(".")
            parent = view.module.get_submodule(above)
            scopes[part].leaves.append((parent, name, module))
            if part == "attention" and leaf.role in ("query", "fused"):
                parent.__dict__["_turnout_attends"] = handle
    if "head" in mine:
        _attach_merge(view, scopes["attention"])
    swap(view.module, RoutedBlock)
    view.module.__dict__["_turnout"] = handle
    if view.layer == 0 and view.stack.embeddings:
        embeddings = model.base_model.get_submodule(view.stack.embeddings)
        swap(embeddings, RoutedEmbeddings)
        embeddings.__dict__["_turnout"] = handle


def _attach_merge(view: BlockView, scope: Scope) -> None:
    """Attention's output projection, where it is a part of a leaf."""
    module = view.module.get_submodule(view.merge)
    if "_turnout_scope" in module.__dict__:
        return
    swap(module, HEAD_ROLES["merge"])
    module.__dict__["_turnout_scope"], module.__dict__["_turnout_last"] = scope, False
    above, _, name = view.merge.rpartition(".")
    scope.leaves.append((view.module.get_submodule(above), name, module))
