"""Wire routers to one block of a host: what `install` does for each."""

from __future__ import annotations

from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from turnout.execute.adapters import AdapterLeaf
from turnout.execute.block import RoutedBlock, RoutedEmbeddings
from turnout.execute.experts import ExpertIn, ExpertOut
from turnout.execute.handle import BlockHandle
from turnout.execute.head_leaves import HEAD_ROLES
from turnout.execute.leaves import ROLES
from turnout.execute.moe import OwnExperts
from turnout.execute.output import OutputHandle, RoutedReader
from turnout.execute.routing import Routing
from turnout.execute.scope import Scope, Stream
from turnout.hosts.linear import matrix_of
from turnout.hosts.swap import swap
from turnout.hosts.view import BlockView, unit_name
from turnout.route import Site, SiteKind
from turnout.routers.base import RouterConfig
from turnout.units.adapters import BottleneckBank, LoraBank
from turnout.units.copies import CopyBank
from turnout.units.experts import first_order, reorder
from turnout.units.output import OutputBank

_PARTS = ("attention", "cross", "ffn")


def attach(
    model: PreTrainedModel,
    view: BlockView,
    routing: Routing,
    sites: dict[str, Site],
    hidden: bool,
    watched: dict[tuple[str, int], str],
) -> None:
    """Give a block, its leaves and its embeddings their routed classes. sites: of all routers."""
    keys = {kind: f"{view.place}.{kind}" for kind in get_args(SiteKind)}
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
        whole_heads=view.stack.whole_heads,
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
                handle.attends = parent
    if "head" in mine:
        _attach_merge(view, scopes["attention"])
    if "expert" in mine and view.own_experts is None:
        _attach_experts(view, routing, mine["expert"], handle)
    elif "expert" in mine:
        _attach_own_experts(view, handle)
    if "adapter" in mine:
        _attach_adapters(view, routing, mine["adapter"], handle)
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


def split(view: BlockView, routing: Routing, sites: dict[str, Site]) -> None:
    """Put the neurons of a block in the order of its experts."""
    site = sites.get(f"{view.place}.expert")
    if site is not None and view.place in routing.orders:
        config = routing.config_of(site)
        order = first_order(view, config.experts, config.split)
        reorder(view, order)
        routing.orders[view.place].copy_(order)


def _attach_experts(view: BlockView, routing: Routing, site: Site, handle: BlockHandle) -> None:
    """The linear layers of the ffn: neurons in the order of the experts, or copies of all."""
    config, scope = routing.config_of(site), handle.scopes["ffn"]
    device = next(view.module.parameters()).device
    bank = CopyBank(view, config.experts).to(device) if config.split == "copied" else None
    if bank is not None:
        routing.units[view.bank] = bank
        handle.copies = True
        handle.averages = not getattr(config, "modulate", False)
    else:
        count = torch.arange(view.neuron_count(), device=device)
        routing.keep_order(view.place, count)
    into, out = view.neurons()
    for (path, module), mixin in [*((found, ExpertIn) for found in into), (out, ExpertOut)]:
        swap(module, mixin)
        module.__dict__["_turnout_scope"] = scope
        module.__dict__.setdefault("_turnout_last", False)
        module.__dict__["_turnout_halves"] = view.halves if mixin is ExpertIn else 1
        copies = None if bank is None else (bank, unit_name(path))
        module.__dict__["_turnout_copies"] = copies
        above, _, name = path.rpartition(".")
        scope.leaves.append((view.module.get_submodule(above), name, module))


BESIDE = "adapters stand beside"


def new_bank(view: BlockView, config: RouterConfig) -> LoraBank | BottleneckBank:
    """Fresh adapters of a block, as a router's config wants them."""
    if config.form == "bottleneck":
        return BottleneckBank(config.adapters, config.rank, _width(view))
    shapes = {}
    for path in _targets(view, config):
        weight, _ = matrix_of(view.module.get_submodule(path), BESIDE)
        shapes[unit_name(path)] = (weight.shape[1], weight.shape[0])
    return LoraBank(config.adapters, config.rank, config.scale, shapes)


def _width(view: BlockView) -> int:
    """Of the states of a block. Quantised layers, and PEFT's, say it though they show no matrix."""
    module: Any = view.module.get_submodule(view.target("query")[0])
    if hasattr(module, "in_features"):
        return int(module.in_features)
    weight, _ = matrix_of(module, BESIDE)
    return int(weight.shape[1])


def _targets(view: BlockView, config: RouterConfig) -> list[str]:
    """Paths of the linear layers that get LoRA units, each once."""
    return list(dict.fromkeys(path for name in config.targets for path in view.target(name)))


def _attach_adapters(view: BlockView, routing: Routing, site: Site, handle: BlockHandle) -> None:
    """Adapters beside the target layers of a block, or after it."""
    config = routing.config_of(site)
    bank = new_bank(view, config).to(next(view.module.parameters()).device)
    routing.units[view.bank] = bank
    if isinstance(bank, BottleneckBank):
        handle.bottleneck = bank
        return
    for path in _targets(view, config):
        module = view.module.get_submodule(path)
        part = "attention" if path in _attention_paths(view) else "ffn"
        scope, name = handle.scopes[part], unit_name(path)
        swap(module, AdapterLeaf)
        module.__dict__.setdefault("_turnout_scope", scope)
        module.__dict__.setdefault("_turnout_last", False)
        module.__dict__["_turnout_adapters"] = (scope, bank, name)
        above, _, last = path.rpartition(".")
        scope.leaves.append((view.module.get_submodule(above), last, module))


def output_bank(config: RouterConfig, width: int) -> OutputBank:
    """Fresh routing layers."""
    return OutputBank(config.adapters, config.inner or width, width)


def attach_output(model: PreTrainedModel, routing: Routing, width: int) -> None:
    """The routing layer between the backbone and the heads of a model of tasks."""
    site = next((site for site in routing.sites if site.kind == "output"), None)
    if site is None:
        return
    bank = output_bank(routing.config_of(site), width)
    routing.units["output"] = bank.to(next(model.parameters()).device)
    reader: Any = model.reader
    swap(reader, RoutedReader)
    reader.__dict__["_turnout_output"] = OutputHandle(routing, site, bank)


def _attach_own_experts(view: BlockView, handle: BlockHandle) -> None:
    """The experts that the host has by itself."""
    module, scope = view.own_experts, handle.scopes["ffn"]
    swap(module, OwnExperts)
    module.__dict__["_turnout_scope"], module.__dict__["_turnout_last"] = scope, False
    module.__dict__["_turnout_handle"] = handle
    above, _, name = view.stack.experts.rpartition(".")
    scope.leaves.append((view.module.get_submodule(above), name, module))


def _attention_paths(view: BlockView) -> set[str]:
    return {view.merge, *(leaf.path for leaf in view.stack.attention)}
