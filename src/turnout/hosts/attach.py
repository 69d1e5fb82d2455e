"""Find the record that serves a model, and the blocks and leaves that it names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.hosts.families import FAMILIES
from turnout.hosts.family import Family, Stack
from turnout.hosts.view import BlockView


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
    if not views or (missing and family.whole):
        raise UserError(
            f"{type(model).__name__} lacks block lists of family {family.name!r}: "
            f"looked for {', '.join(missing)} in {type(base).__name__}"
        )
    return views


def _heads(model: PreTrainedModel, stack: Stack) -> tuple[int, int]:
    """Query heads, and key and value heads, of a stack."""
    base: Any = model.base_model
    if not stack.heads:
        return 0, 0
    *above, field = stack.heads.split(".")
    config = base.config if above else base.config.get_text_config()
    for part in above:
        config = getattr(config, part)
    heads = int(getattr(config, field))
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
