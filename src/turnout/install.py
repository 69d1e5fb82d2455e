"""Install routers on an unmodified Transformers model, and take them off again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.block import RoutedBlock, RoutedEmbeddings
from turnout.execute.handle import BlockHandle
from turnout.execute.leaves import ROLES
from turnout.execute.routing import Routing
from turnout.execute.scope import Scope, Stream
from turnout.hosts.attach import BlockView, blocks_of, find_family, price, restore, site_of, swap
from turnout.route import Site
from turnout.routers import ROUTERS, HostShape, Router, RouterConfig

RouterSpec = RouterConfig | dict[str, Any] | str
_PARTS = ("attention", "cross", "ffn")


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


def install(model: PreTrainedModel, routers: Sequence[RouterSpec] | RouterSpec) -> PreTrainedModel:
    """Add routers, or one, to a model, in place, and return it.

    The model keeps its class, its state-dict keys and its forward; its blocks get routed classes
    and it gets one new child, ``model.turnout``. Raises UserError for an unknown family, a router
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
    for view in views:
        _attach(model, view, routing, by_key, view.stack.name in hidden)
    model.add_module("turnout", routing)
    routing.train(model.training)
    handles = (
        model.register_forward_pre_hook(routing.begin, with_kwargs=True),
        model.register_forward_hook(routing.end, with_kwargs=True),
    )
    object.__setattr__(model, "_turnout_hooks", handles)
    model.config.turnout = spec
    return model


def uninstall(model: PreTrainedModel) -> PreTrainedModel:
    """Take all routers off: keys, classes and outputs are the host's again, bit for bit."""
    if not hasattr(model, "turnout"):
        raise UserError("this model is not routed")
    for handle in model.__dict__.pop("_turnout_hooks"):
        handle.remove()
    for module in model.modules():
        for name in ("_turnout", "_turnout_scope", "_turnout_last"):
            module.__dict__.pop(name, None)
        restore(module)
    del model.turnout
    model.config.__dict__.pop("turnout")
    return model


def _hidden(configs: Sequence[RouterConfig], views: list[BlockView]) -> frozenset[str]:
    """Stacks whose skipped tokens are taken out of attention: one answer for all routers that skip
    attention there."""
    hidden = set()
    for name, hideable in {view.stack.name: view.stack.hideable for view in views}.items():
        here = [config for config in configs if config.stack in (None, name)]
        said = {config.visible for config in here if config.site != "ffn"}
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
        every = [site_of(view, config.site, view.stack.name in hidden) for view in views]
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
) -> None:
    keys = {
        kind: f"{view.stack.name}.{view.layer}.{kind}" for kind in ("layer", "attention", "ffn")
    }
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
        stream,
        scopes,
    )
    for part in scopes:
        found = list(view.leaves(part))
        for leaf, module in found:
            swap(module, ROLES[leaf.role])
            module.__dict__["_turnout_scope"] = scopes[part]
            module.__dict__["_turnout_last"] = leaf is found[-1][0]
            above, _, name = leaf.path.rpartition(".")
            scopes[part].leaves.append((view.module.get_submodule(above), name, module))
    swap(view.module, RoutedBlock)
    view.module.__dict__["_turnout"] = handle
    if view.layer == 0 and view.stack.embeddings:
        embeddings = model.base_model.get_submodule(view.stack.embeddings)
        swap(embeddings, RoutedEmbeddings)
        embeddings.__dict__["_turnout"] = handle
