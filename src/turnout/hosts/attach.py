"""Read a family's record on a model: find its blocks and leaves, price them, swap classes, undo."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.hosts.families import FAMILIES
from turnout.hosts.family import Family, Leaf, Stack
from turnout.hosts.linear import matrix_of
from turnout.route import Site, SiteKind, UnitCost


@dataclass(frozen=True, eq=False)
class BlockView:
    """One block of a host, read through its family's record. heads: of the queries; groups: of the
    keys and values, which some hosts share among query heads. top: experts that a token runs, in
    hosts that have experts by themselves."""

    stack: Stack
    layer: int
    depth: int
    module: nn.Module
    heads: int = 1
    groups: int = 1
    top: int = 0

    @property
    def place(self) -> str:
        """Stack and layer, as a site's ``place``."""
        return f"{self.stack.name}.{self.layer}"

    @property
    def bank(self) -> str:
        """Name of the units that it has in ``model.turnout.units`` (modules' names take no dot)."""
        return f"{self.stack.name}_{self.layer}"

    @property
    def merge(self) -> str:
        """Path of attention's output projection."""
        found = [leaf.path for leaf in self.stack.attention if leaf.role == "delta"]
        return self.stack.merge or found[0]

    def neurons(self) -> tuple[list[tuple[str, nn.Module]], tuple[str, nn.Module]]:
        """Paths and modules that make the neurons of the ffn, and the one that reads them. Raises
        UserError where the family's record does not name them."""
        record = self.stack.neurons
        if record is None:
            raise UserError(
                f"the record of {self.stack.blocks} does not say where the neurons of its ffn are: "
                "see `neurons` in docs/hosts.md"
            )
        there = dict(self.module.named_modules())
        into = [(path, there[path]) for path in record.into if path in there]
        if not into or record.out not in there:
            raise UserError(
                f"block {self.layer} of {self.stack.blocks} has none of "
                f"{', '.join((*record.into, record.out))}: see `neurons` in docs/hosts.md"
            )
        return into, (record.out, there[record.out])

    @property
    def halves(self) -> int:
        """Projections fused in one matrix."""
        return 1 if self.stack.neurons is None else self.stack.neurons.halves

    @property
    def own_experts(self) -> Any:
        """The module of experts that the host has by itself in this block; None = it has none."""
        there = dict(self.module.named_modules())
        return there.get(self.stack.experts) if self.stack.experts else None

    def target(self, name: str) -> list[str]:
        """Paths of the linear layers that an adapter's target names."""
        if name == "output":
            return [self.merge]
        if name in ("in", "out"):
            into, (out, _) = self.neurons()
            return [path for path, _ in into] if name == "in" else [out]
        by_role: dict[str, list[str]] = {}
        for leaf in self.stack.attention:
            by_role.setdefault(leaf.role, []).append(leaf.path)
        if "fused" in by_role:
            return by_role["fused"]
        key, value = by_role["visible"]
        return {"query": by_role["query"], "key": [key], "value": [value]}[name]

    def neuron_count(self) -> int:
        """Neurons of the ffn, F."""
        _, (_, out) = self.neurons()
        weight, _ = matrix_of(out)
        return int(weight.shape[1])

    def leaves(self, kind: str) -> Iterator[tuple[Leaf, nn.Module]]:
        """The leaves of a sub-block (attention, cross, ffn) that exist in this block."""
        for leaf in getattr(self.stack, kind):
            yield leaf, self.module.get_submodule(leaf.path)


def unit_name(path: str) -> str:
    """A name for what stands beside a layer, from its path. Transformers renames keys on saving by
    patterns such as ``q_proj``, wherever in a key they stand; none of them is in capitals."""
    return path.replace(".", "__").upper()


def find_family(model: PreTrainedModel) -> Family:
    """The record that serves a model. Raises UserError that lists what was looked for."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            "turnout routes Transformers models; got "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    config: Any = model.base_model.config
    kind = config.model_type
    records = [family for family in FAMILIES.values() if kind in family.model_types]
    refusals = [_refusal(model, family) for family in records]
    for family, refusal in zip(records, refusals, strict=True):
        if refusal is None:
            return _as_decoder(family) if _is_causal(config) else family
    if refusals:
        raise UserError(refusals[0])
    known = "; ".join(f"{f.name}: {', '.join(f.model_types)}" for f in FAMILIES.values())
    lists = [
        f"{name} ({len(module)} x {type(module[0]).__name__})"
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    raise UserError(
        f"no host family serves model_type {kind!r} ({type(model).__name__}). Looked for a record "
        f"whose model_types hold it, among: {known}. Block lists in this model: "
        f"{', '.join(lists) or 'none'}. One record adds the family: see docs/hosts.md"
    )


def _is_causal(config: Any) -> bool:
    """Does an encoder's class attend to the left only (BertLMHeadModel, the decoder of an
    EncoderDecoderModel)."""
    return bool(getattr(config, "is_decoder", False)) and not config.is_encoder_decoder


def _as_decoder(family: Family) -> Family:
    """The record with its stacks named for what they do, so that nothing looks ahead in them."""
    stacks = (replace(stack, name="decoder", hideable=False) for stack in family.stacks)
    return replace(family, stacks=tuple(stacks))


def _refusal(model: PreTrainedModel, family: Family) -> str | None:
    """Why a record cannot serve a model's config; None = it can."""
    config = model.base_model.config
    for field, allowed, reason in family.refuse:
        value = getattr(config, field, allowed)
        if value != allowed:
            return (
                f"{type(model).__name__} has config.{field} = {value!r}; family {family.name!r} "
                f"needs {allowed!r}: {reason}"
            )
    return None


def blocks_of(model: PreTrainedModel, family: Family) -> list[BlockView]:
    """Every block of every stack that the model has (an encoder-only T5 has one stack)."""
    base = model.base_model
    views: list[BlockView] = []
    missing = []
    for stack in family.stacks:
        try:
            modules = base.get_submodule(stack.blocks)
        except AttributeError:
            missing.append(stack.blocks)
            continue
        if not isinstance(modules, nn.ModuleList):
            raise UserError(
                f"{type(model).__name__}: {stack.blocks} of family {family.name!r} is a "
                f"{type(modules).__name__}, not a list of blocks; see docs/hosts.md"
            )
        heads, groups = _heads(model, stack)
        top = _top(model) if stack.experts else 0
        for layer, module in enumerate(modules):
            view = BlockView(stack, layer, len(modules), module, heads, groups, top)
            _check_leaves(view, type(model).__name__)
            views.append(view)
    if not views:
        raise UserError(
            f"{type(model).__name__} has none of the block lists of family {family.name!r}: "
            f"looked for {', '.join(missing)} in {type(base).__name__}"
        )
    return views


def _heads(model: PreTrainedModel, stack: Stack) -> tuple[int, int]:
    """Query heads, and key and value heads, of a stack."""
    base: Any = model.base_model
    config = base.config.get_text_config()
    if not stack.heads:
        return 0, 0
    heads = int(getattr(config, stack.heads))
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


def _top(model: PreTrainedModel) -> int:
    base: Any = model.base_model
    return int(base.config.get_text_config().num_experts_per_tok)


def _check_leaves(view: BlockView, model_name: str) -> None:
    for kind in ("attention", "cross", "ffn"):
        for leaf in getattr(view.stack, kind):
            try:
                view.module.get_submodule(leaf.path)
            except AttributeError as error:
                raise UserError(
                    f"{model_name}: block {view.layer} of {view.stack.blocks} has no "
                    f"{leaf.path!r} (role {leaf.role}, sub-block {kind}): {error}. The record of "
                    "this family does not fit this Transformers version; see docs/hosts.md"
                ) from None


def site_of(
    view: BlockView,
    kind: SiteKind,
    hidden: bool = False,
    units: int | None = None,
    cost: UnitCost | None = None,
    together: int | None = None,
) -> Site:
    """The site of a kind at a block, with its cost. hidden: skipped tokens make no keys. units: how
    many there are where that is not the host's to say. cost: of one; None = the host's part.
    together: how many a token runs when everything does; None = all."""
    key = f"{view.place}.{kind}"
    if units is None:
        units = view.groups if kind == "head" else 1
    most = units if together is None else together
    if cost is None:
        cost = price(view, kind, units)
    if hidden:
        cost = replace(cost, idle=0.0)
    return Site(key, kind, view.stack.name, view.layer, view.depth, units, cost, most)


def price(view: BlockView, kind: SiteKind, units: int = 1) -> UnitCost:
    """FLOPs of a sub-block, of one of its heads or of the whole block, from its matrices' shapes.

    What cross-attention does for the encoder's tokens is not in it.
    """
    if kind == "layer":
        parts = [_price_part(view, part) for part in ("attention", "cross", "ffn")]
        idle = sum(part.idle for part in parts) if view.stack.hideable is False else parts[0].idle
        return UnitCost(
            sum(p.row for p in parts), idle, sum(p.pair for p in parts), sum(p.bytes for p in parts)
        )
    if kind == "head":
        return _price_part(view, "attention").part(units)
    if kind == "expert":
        return _price_part(view, "ffn").part(units)
    return _price_part(view, kind)


def _price_part(view: BlockView, part: str) -> UnitCost:
    row = idle = pair = 0.0
    size = 0
    for leaf, module in view.leaves(part):
        matrix = _matrix_flops(module) + view.top * _expert_flops(module)
        size += sum(p.numel() * p.element_size() for p in module.parameters())
        if leaf.role == "visible":
            idle += matrix
        elif leaf.role == "fused":
            idle += matrix * 2 / 3
            row += matrix / 3
            pair += 4 * _width(module) / 3
        elif leaf.role == "query":
            row += matrix
            pair += 4 * _width(module) if part != "cross" else 0.0
        else:
            row += matrix
    return UnitCost(row + idle, idle, pair, size)


def _matrix_flops(module: nn.Module) -> float:
    """Two FLOPs for each weight of each matrix: what one row costs."""
    return float(sum(2 * p.numel() for p in module.parameters() if p.ndim == 2))


def _expert_flops(module: nn.Module) -> float:
    """What one expert of a host's own costs for one row, two FLOPs a weight."""
    return float(sum(2 * p[0].numel() for p in module.parameters() if p.ndim == 3))


def _width(module: nn.Module) -> int:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        return bias.shape[0]
    return int(module.weight.shape[0])  # type: ignore[union-attr,index]


@functools.cache
def swapped(cls: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """The routed class of a host class: one for each pair, with the host's names."""
    names: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made = type(cls.__name__, (mixin, cls), names)
    made._turnout_host = cls  # type: ignore[attr-defined]
    return made


def swap(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Give a module instance its routed class."""
    module.__class__ = swapped(type(module), mixin)


def restore(module: nn.Module) -> None:
    """Give a module instance the host's class back."""
    while (host := type(module).__dict__.get("_turnout_host")) is not None:
        module.__class__ = host
