"""What `install` refuses or warns of, before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.routing import Routing
from turnout.hosts.read_out import check_read_out
from turnout.hosts.view import BlockView
from turnout.routers import HostShape, Router
from turnout.routers.base import peeks


def check_hides(model: PreTrainedModel) -> None:
    """Raise UserError where tokens cannot be taken out of attention by its mask."""
    config: Any = model.base_model.config
    name = config._attn_implementation
    if name not in ("sdpa", "eager"):
        raise UserError(
            f"visible: false needs a mask of every pair, but {type(model).__name__} attends by "
            f"{name!r}: load the host with attn_implementation='sdpa'"
        )


def check_block(model: PreTrainedModel, view: BlockView) -> None:
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


def warn_of_leaks(routers: Iterable[Router], shape: HostShape) -> None:
    """Warn where later tokens of a language model would decide for earlier ones."""
    for router in routers:
        if peeks(router) and not shape.labels:
            warnings.warn(
                f"router {router.config.kind!r} decides for a whole {router.config.granularity} "
                "from all of its tokens; in a decoder that predicts tokens, later ones would then "
                "decide for earlier ones: use granularity: token, or stack: encoder",
                stacklevel=3,
            )


def check_outlets(
    model: PreTrainedModel, routers: Iterable[Router], views: Iterable[BlockView]
) -> None:
    """Raise UserError where a router reads states out, and the host cannot."""
    stacks = {view.stack.name: view.stack for view in views}
    for router in routers:
        for name in dict.fromkeys(site.stack for site in router.sites) if router.reads_out else ():
            check_read_out(model, stacks[name])


def check_units(routing: Routing, watched: dict[tuple[str, int], str]) -> None:
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
