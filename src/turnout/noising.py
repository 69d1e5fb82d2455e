"""Trained noise into the blocks of a host: what `install` does for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from turnout.errors import UserError
from turnout.execute.handle import BlockHandle
from turnout.execute.noise import NoiseHandle, NoisyLeaf
from turnout.hosts.linear import matrix_of
from turnout.hosts.swap import swap
from turnout.hosts.view import BlockView
from turnout.noise import NOISES, Noise, NoiseConfig, NoisePlace
from turnout.noise.attention import AttentionNoise
from turnout.noise.ffn import FfnNoise
from turnout.route import Site


def build_noise(
    configs: Sequence[NoiseConfig], views: Sequence[BlockView], sites: Sequence[Site], model: Any
) -> dict[str, Noise]:
    """The noise of each block, by stack, layer and kind. sites: those of the routers.

    Raises UserError for noise that finds no block, two of a kind in one block, layers that the
    model has not, and blocks whose routers take what the noise is added to apart.
    """
    routed = {(site.place, site.kind) for site in sites}
    built: dict[str, Noise] = {}
    for config in configs:
        _check_layers(config, views)
        found = [v for v in views if config.covers(v.stack.name, v.layer, v.depth)]
        if not found:
            raise UserError(
                f"noise {config.kind!r} finds no block: stack={config.stack}, layers="
                f"{config.layers}, hold_first={config.hold_first}, hold_last={config.hold_last}; "
                f"the model has {', '.join(view.place for view in views)}"
            )
        for view in found:
            name = noise_name(view, config.kind)
            if name in built:
                raise UserError(f"two noises of kind {config.kind!r} in block {view.place}")
            _check_routers(config, view, routed)
            made = NOISES[config.kind]
            built[name] = made(config, _place(view, config, model))  # type: ignore[call-arg, arg-type]
    return built


def noise_name(view: BlockView, kind: str) -> str:
    """Name of a block's noise in ``model.turnout.noise``. Its letters are capitals for the reason
    that ``unit_name`` gives."""
    return f"{view.bank}_{kind}".upper()


def swap_noisy(view: BlockView, noise: nn.ModuleDict) -> None:
    """Give the end of a block's feed-forward network its noisy class; before those of its roles."""
    if noise_name(view, "ffn") in noise:
        swap(_end(view), NoisyLeaf)


def wire_noise(view: BlockView, noise: nn.ModuleDict) -> None:
    """Tell a routed block of its noise."""
    handle: BlockHandle = view.module.__dict__["_turnout"]
    for kind in NOISES:
        found = dict(noise.items()).get(noise_name(view, kind))
        if isinstance(found, FfnNoise):
            _end(view).__dict__["_turnout_noise"] = NoiseHandle(found, handle.scopes["ffn"])
        elif isinstance(found, AttentionNoise):
            handle.logit_noise = found
        handle.noisy = handle.noisy or found is not None


def _end(view: BlockView) -> nn.Module:
    """The module whose result a feed-forward network adds to the stream: the network itself, or
    where its parts are leaves of the block, the last projection."""
    leaf, module = _changes(view) or (None, None)
    return view.neurons()[1][1] if leaf is None or module is None else module


def _changes(view: BlockView) -> Any:
    """The leaf that is a whole feed-forward network; None = it has several."""
    found = [(leaf, m) for leaf, m in view.leaves("ffn") if leaf.role in ("delta", "sequence")]
    return found[-1] if found else None


def _place(view: BlockView, config: NoiseConfig, model: Any) -> NoisePlace:
    own = model.base_model.config.get_text_config()
    heads = view.heads or int(own.num_attention_heads)
    width = int(getattr(own, "hidden_size", 0) or 0)
    head_width = 0
    if config.kind == "attention" and config.mean:
        merge, _ = matrix_of(view.module.get_submodule(view.merge), "the mean of noise reads off")
        head_width = merge.shape[1] // heads
    return NoisePlace(view.stack.name, view.layer, width, heads, head_width)


def _check_layers(config: NoiseConfig, views: Sequence[BlockView]) -> None:
    deepest = max(view.depth for view in views)
    wrong = [n for n in config.layers or () if not -deepest <= n < deepest]
    if wrong:
        raise UserError(
            f"noise {config.kind!r}: layers names {wrong}; the model has layers 0 to {deepest - 1} "
            f"(or -{deepest} to -1, from the end)"
        )


def _check_routers(config: NoiseConfig, view: BlockView, routed: set[tuple[str, Any]]) -> None:
    if config.kind == "attention" and (view.place, "head") in routed:
        raise UserError(
            f"noise 'attention': heads of {view.place} are routed, so their logits are not there "
            "as a whole: leave one of the two out of this block (layers, hold_first, hold_last)"
        )
    if config.kind == "ffn" and (view.place, "expert") in routed and _changes(view) is None:
        raise UserError(
            f"noise 'ffn': experts of {view.place} are routed, whose last projection is taken "
            "apart in this host: leave one of the two out of this block"
        )
