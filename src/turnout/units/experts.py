"""Split the neurons of a dense feed-forward network into experts of equal size.

Neuron f computes act(W_in[f] x) and adds W_out[:, f] times it. A split is an order of the neurons:
expert e owns those at places e * F / E to (e + 1) * F / E. ``parameters`` groups neurons with like
input weights and ``coactivation`` those that are active on the same tokens, both by k-means into
clusters of one size (MoEfication, Zhang et al. 2021, arXiv 2110.01786: parameter clustering and
co-activation graph split); ``importance`` deals the neurons that matter most for the loss, by
|gradient x activation|, to all experts alike (LLaMA-MoE, arXiv 2406.16554); ``random`` is the
baseline.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.begin import token_mask
from turnout.execute.mode import evaluating
from turnout.execute.span import run_span
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.linear import matrix_of, reorder_columns, reorder_rows
from turnout.hosts.view import BlockView
from turnout.route import Site
from turnout.routers.cluster import balanced_labels


def check_split(neurons: int, experts: int, where: str) -> None:
    """Raise UserError unless so many experts share the neurons alike."""
    if neurons % experts:
        near = [n for n in range(2, neurons + 1) if neurons % n == 0 and n <= 4 * experts]
        raise UserError(
            f"{where} has {neurons} neurons, which {experts} experts cannot share alike; "
            f"choose one of {', '.join(map(str, near))}"
        )


def check_own(experts: Any) -> None:
    """Raise UserError unless a host's own experts are of the kind that we can compute."""
    gated = getattr(experts, "has_gate", False) and getattr(experts, "is_concatenated", False)
    odd = [
        name
        for name in ("has_bias", "is_transposed", "has_post_expert_norm")
        if getattr(experts, name, False)
    ]
    if not gated or odd:
        raise UserError(
            f"{type(experts).__name__} cannot be routed: its experts need a gate beside the up "
            f"projection, no bias, no norm and rows as outputs; found {odd or 'no gate'}"
        )


def random_order(neurons: int, seed: int = 0) -> Tensor:
    """A random order of the neurons (F,)."""
    return torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))


def clustered_order(features_FK: Tensor, experts: int, seed: int = 0) -> Tensor:
    """An order in which neurons with like features stand together, (F,).

    features_FK: what describes each neuron: its input weights, or its activations on K tokens.
    K-means finds the centres; neurons are then assigned in the order of how much they would lose
    by their second choice, to the nearest centre that has room.
    """
    features = torch.nn.functional.normalize(features_FK.float(), dim=1).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # some neurons may be the same
        means: Any = KMeans(experts, n_init=1, random_state=seed)  # type: ignore[arg-type]
        centres = means.fit(features).cluster_centers_
    chosen = balanced_labels(features, centres)
    order = np.argsort(chosen, kind="stable")
    return torch.from_numpy(order)


def dealt_order(importance_F: Tensor, experts: int) -> Tensor:
    """An order in which each expert gets as many important neurons as the others, (F,)."""
    ranked = importance_F.argsort(descending=True, stable=True)
    return ranked.view(-1, experts).t().reshape(-1)


def first_order(view: BlockView, experts: int, split: str) -> Tensor:
    """The order of a block's neurons that needs no data (F,): by parameters, or random, which is
    also where splits begin that look at data."""
    into, _ = view.neurons()
    weight, _ = matrix_of(into[0][1])
    if split == "parameters" and weight.device.type != "meta":
        return clustered_order(weight.detach()[: view.neuron_count()], experts)
    return random_order(view.neuron_count())


def reorder(view: BlockView, order: Tensor) -> None:
    """Put the neurons of a block's ffn into an order, in place: the network computes the same."""
    into, (_, out) = view.neurons()
    wide = torch.cat([order + half * len(order) for half in range(view.halves)])
    for _, module in into:
        reorder_rows(module, wide)
    reorder_columns(out, order)


def split_by_data(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    how: str,
    tokens: int = 2048,
    sites: Sequence[Site] | None = None,
) -> None:
    """Share out the neurons of sites ``expert`` anew, by what they do on data; in place.

    how: ``coactivation`` looks at the neurons' activations on up to so many ``tokens``, and
    ``importance`` at |activation x gradient of the loss| (batches need labels). sites: None = all.
    The model computes the same as before, but for rounding. Raises UserError for a model without
    experts, or no data.
    """
    views, by_place = _expert_places(model, sites)
    routing: Any = model.turnout
    orders = routing.orders
    for place, found_KF in _watch(model, views, batches, how, tokens).items():
        site = by_place[place]
        if how == "coactivation":
            order = clustered_order(found_KF.t(), site.units)
        else:
            order = dealt_order(found_KF.sum(0), site.units)
        reorder(views[place], order)
        orders[place].copy_(orders[place][order.to(orders[place].device)])


def neuron_importance(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]], tokens: int = 2048
) -> dict[str, Tensor]:
    """Sum of |activation x gradient of the loss| of each neuron over up to so many tokens, (F,), in
    the host's own order, by stack and layer, as ``encoder.0``.

    model: routed at site ``expert``. batches: labelled. Raises UserError as ``split_by_data``.
    """
    views, _ = _expert_places(model, None)
    routing: Any = model.turnout
    orders = routing.orders
    found = _watch(model, views, batches, "importance", tokens)
    return {
        place: torch.empty_like(value_KF[0]).scatter_(0, orders[place], value_KF.sum(0))
        for place, value_KF in found.items()
    }


def _expert_places(
    model: PreTrainedModel, sites: Sequence[Site] | None
) -> tuple[dict[str, BlockView], dict[str, Site]]:
    """Blocks with sites ``expert``, and the sites, by stack and layer."""
    routing: Any = getattr(model, "turnout", None)
    wanted = () if routing is None else routing.sites if sites is None else sites
    by_place = {s.place: s for s in wanted if s.kind == "expert"}
    if not by_place:
        raise UserError("the neurons can be looked at in a model with a router at site expert")
    views = {v.place: v for v in blocks_of(model, find_family(model))}
    return {place: views[place] for place in by_place}, by_place


@contextmanager
def _neurons(views: Mapping[str, BlockView], learns: bool) -> Iterator[dict[str, Tensor]]:
    """Activations of the neurons of some blocks in the latest pass inside, by place. learns: with
    the gradient of the loss, once it was asked for."""
    kept: dict[str, Tensor] = {}

    def keeper(place: str) -> Any:
        def keep(module: Any, args: tuple[Tensor, ...]) -> None:
            kept[place] = args[0]
            if learns:
                args[0].requires_grad_().retain_grad()  # a frozen host asks for none by itself

        return keep

    handles = [
        view.neurons()[1][1].register_forward_pre_hook(keeper(place))
        for place, view in views.items()
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    model: PreTrainedModel,
    views: Mapping[str, BlockView],
    batches: Iterable[Mapping[str, Any]],
    how: str,
    tokens: int,
) -> dict[str, Tensor]:
    """What the neurons of each block do, token by token: (K, F)."""
    learns = how == "importance"
    parts: dict[str, list[Tensor]] = {place: [] for place in views}
    count = 0
    with evaluating(model), _neurons(views, learns) as kept:
        for batch in batches:
            inputs = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)}
            with torch.set_grad_enabled(learns):
                outputs = run_span(model, inputs, 0, None)
                if learns:
                    _loss_of(outputs).backward()
            for place, value in kept.items():
                found = _size(place, value, learns)
                real = real_rows(model, views[place].stack.name, inputs, found)
                parts[place].append(found.flatten(0, -2)[real])
            model.zero_grad()
            count += int(parts[next(iter(parts))][-1].shape[0])
            if count >= tokens:
                break
    if not count:
        raise UserError("there are no rows to look at")
    return {place: torch.cat(found)[:tokens] for place, found in parts.items()}


def _size(place: str, value: Tensor, learns: bool) -> Tensor:
    """|activation|, times |gradient| where that is asked for. Raises UserError for NaN."""
    found = value.detach().abs()
    if not bool(found.isfinite().all()):
        raise UserError(f"the neurons of {place} are not all finite: NaN in the host?")
    if learns:
        assert value.grad is not None
        found = found * value.grad.abs()
    return found


def real_rows(
    model: PreTrainedModel, stack: str, inputs: Mapping[str, Tensor], state: Tensor
) -> Tensor | slice:
    """Which rows of a stack's flattened state (B, T, ...) are real tokens."""
    routing: Any = model.turnout
    mask_BT = token_mask(routing, model, inputs, stack, state.shape[0], state.shape[1])
    return slice(None) if mask_BT is None else mask_BT.flatten()


def _loss_of(outputs: Any) -> Tensor:
    loss = outputs.get("loss")
    if loss is None:
        raise UserError("importance is that of the loss, but the batches hold no labels")
    return loss
