"""Install routers and noise on an unmodified Transformers model, and take them off again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from transformers import PreTrainedModel

from turnout.building import build, hidden_stacks, host_shape, watched_layers
from turnout.checks import check_block, check_hides, check_outlets, check_units, warn_of_leaks
from turnout.errors import UserError
from turnout.execute.attend import watch_attention
from turnout.execute.routing import Routing
from turnout.execute.writing import generate, reads_out
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.price import price
from turnout.hosts.swap import restore
from turnout.hosts.tasks_model import TasksModel
from turnout.noise import NOISES, NoiseConfig
from turnout.noising import build_noise, swap_noisy, wire_noise
from turnout.routers import ROUTERS, RouterConfig
from turnout.units.experts import reorder
from turnout.units.peft import fill, lora_fields, read_lora
from turnout.wiring import attach, attach_output, split

RouterSpec = RouterConfig | dict[str, Any] | str
NoiseSpec = NoiseConfig | dict[str, Any] | str
_OWN = "scope last attends halves copies adapters handle output noise".split()
_MARKS = ("_turnout", *(f"_turnout_{name}" for name in _OWN))
C = TypeVar("C", bound=BaseModel)


def parse_router(spec: RouterSpec) -> RouterConfig:
    """A router's config from its kind, a dict, or a config; UserError names the wrong field."""
    if isinstance(spec, RouterConfig):
        return spec
    return _parsed("router", spec, lambda kind: ROUTERS[kind].Config)


def parse_noise(spec: NoiseSpec) -> NoiseConfig:
    """As ``parse_router``, of noise."""
    if isinstance(spec, NoiseConfig):
        return spec
    return _parsed("noise", spec, lambda kind: NOISES[kind].Config)


def _parsed(what: str, spec: Any, config_of: Callable[[str], type[C]]) -> C:
    if not isinstance(spec, str | dict):
        a = "a router" if what == "router" else what
        raise UserError(f"{a} is given by its kind, a dict of fields or a config, got {spec!r}")
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    config = config_of(str(fields.get("kind", "")))
    try:
        return config.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([str(fields["kind"]), *(str(part) for part in first["loc"])])
        allowed = ""
        if first["type"] == "extra_forbidden":
            allowed = f"; its fields are {', '.join(config.model_fields)}"
        raise UserError(
            f"{what} {where}: {first['msg']}, got {first['input']!r}{allowed}"
        ) from None


def install(
    model: PreTrainedModel,
    routers: Sequence[RouterSpec] | RouterSpec = (),
    *,
    noise: Sequence[NoiseSpec] | NoiseSpec = (),
    tasks: Sequence[str] = (),
    ordered: bool = False,
) -> PreTrainedModel:
    """Add routers, trained noise, or both (a list or one of each) to a model, in place, and return
    it.

    The model keeps its class, its state-dict keys and its forward; its blocks get routed classes
    and it gets one new child, ``model.turnout``. tasks: names of those that a pass may ask for, by
    ``task_ids`` (places in this list, one a sequence) or ``model.turnout.task``. ordered: neurons
    stand in the order of the experts already, as in a saved model. Raises UserError for an unknown
    family, a router that finds no site, or two routers at one site; and for noise that finds no
    block, or stands where heads or experts are taken apart. Nothing is changed when it raises.
    """
    if hasattr(model, "turnout"):
        raise UserError("this model is routed already; call turnout.uninstall(model) first")
    alone = isinstance(routers, str | dict | RouterConfig)
    configs = [parse_router(spec) for spec in ([routers] if alone else routers)]
    single = isinstance(noise, str | dict | NoiseConfig)
    noises = [parse_noise(spec) for spec in ([noise] if single else noise)]
    if not configs and not noises:
        raise UserError(
            "install needs at least one router, for example {'kind': 'exit'}, or noise, for "
            "example noise={'kind': 'ffn'}"
        )
    family = find_family(model)
    views = blocks_of(model, family)
    if any(config.site == "output" for config in configs) and not isinstance(model, TasksModel):
        raise UserError(
            "site output is between a backbone and the heads of its tasks: "
            f"{type(model).__name__} is no turnout.TasksModel"
        )
    hidden = hidden_stacks(configs, views)
    if hidden:
        check_hides(model)
    if isinstance(model, TasksModel):
        if tasks and list(tasks) != model.tasks:
            raise UserError(f"tasks {list(tasks)} are not those of the model: {model.tasks}")
        tasks = model.tasks
    if len(set(tasks)) < len(tasks):
        raise UserError(f"two tasks have one name: {', '.join(tasks)}")
    shape = host_shape(model, tasks)
    built = build(configs, views, shape, hidden)
    for view in views:
        check_block(model, view)
    warn_of_leaks(built.values(), shape)
    check_outlets(model, built.values(), views)
    device = next(model.parameters()).device
    stacks = {view.stack.name: view.stack for view in views}
    costs = {(view.stack.name, view.layer): price(view, "layer") for view in views}
    spec = {"version": 1, "routers": [c.model_dump(mode="json") for c in configs], "budget": 1.0}
    if tasks:
        spec["tasks"] = list(tasks)
    if noises:
        spec["noise"] = [config.model_dump(mode="json") for config in noises]
    routing = Routing(built, stacks, costs, spec)
    for name, each in build_noise(noises, views, routing.sites, model).items():
        routing.noise[name] = each
    routing.to(device)
    by_key = {site.key: site for site in routing.sites}
    watched = watched_layers(routing)
    check_units(routing, watched)
    heads = any(site.kind == "head" for site in routing.sites)
    logits = any(config.kind == "attention" for config in noises)
    attention = watch_attention(model) if watched or heads or logits else None
    for view in views:
        swap_noisy(view, routing.noise)
        attach(model, view, routing, by_key, view.stack.name in hidden, watched)
        wire_noise(view, routing.noise)
        if not ordered:
            split(view, routing, by_key)
    attach_output(model, routing, shape.hidden)
    model.add_module("turnout", routing)
    routing.train(model.training)
    handles = (
        model.register_forward_pre_hook(routing.begin, with_kwargs=True),
        model.register_forward_hook(routing.end, with_kwargs=True),
        *_encoder_hooks(model, routing),
    )
    object.__setattr__(model, "_turnout_hooks", handles)
    object.__setattr__(model, "_turnout_attention", attention)
    if reads_out(model):
        model.__dict__["generate"] = MethodType(generate, model)
    model.config.turnout = spec
    return model


def _encoder_hooks(model: PreTrainedModel, routing: Routing) -> list[Any]:
    """Hooks of an encoder that ``generate`` calls by itself, before the decoder's passes."""
    config: Any = model.config
    encoder: Any = model.get_encoder() if config.is_encoder_decoder else None
    if encoder is None or encoder is model:
        return []
    return [
        encoder.register_forward_pre_hook(routing.begin_alone, with_kwargs=True),
        encoder.register_forward_hook(routing.end_alone, with_kwargs=True, always_call=True),
    ]


def install_lora(
    model: PreTrainedModel,
    folders: Sequence[str | Path],
    router: RouterSpec = "gate",
    *,
    head: int | None = None,
) -> PreTrainedModel:
    """Add LoRA checkpoints that PEFT saved as units, with a router over them; in place.

    folders: one checkpoint a unit, in order. head: the checkpoint whose trained head (PEFT's
    modules_to_save) goes into the model, for good; None = none of them has one. router: as for
    ``install``; site, number, rank and targets come from the checkpoints. The key-value cache stays
    in use.
    Raises UserError for a checkpoint that is not plain LoRA, or was trained for another host.
    """
    loras = [read_lora(folder) for folder in folders]
    fields = {"kind": router} if isinstance(router, str) else router
    if isinstance(fields, RouterConfig):
        fields = {**fields.model_dump(exclude_unset=True), "kind": fields.kind}
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
    """Take all routers and noise off: keys, classes and outputs are the host's again, bit for bit
    (with the head that ``install_lora`` was told to take, which stays)."""
    if not hasattr(model, "turnout"):
        raise UserError("this model is not routed")
    for handle in model.__dict__.pop("_turnout_hooks"):
        handle.remove()
    attention = model.__dict__.pop("_turnout_attention")
    if attention is not None:
        model.set_attn_implementation(attention)
    for view in blocks_of(model, find_family(model)):
        routing: Any = model.turnout
        order = routing.orders.get(view.place)
        if order is not None:
            reorder(view, order.argsort())
    for module in model.modules():
        for name in _MARKS:
            module.__dict__.pop(name, None)
        restore(module)
    model.__dict__.pop("generate", None)
    del model.turnout
    model.config.__dict__.pop("turnout")
    return model
