"""Teach gates over experts which experts matter for a token, on the host as it is.

The host runs whole; what expert e adds to a token has a length n_e, and a gate learns by
cross-entropy to give expert e the probability n_e^2 / sum n^2, from the state that enters the
block. This is the expert selection of MoEfication (Zhang et al. 2021, arXiv 2110.01786) with the
length of what an expert adds in place of its summed positive activations, which are there only
with ReLU. No gradient passes through the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.mode import evaluating
from turnout.execute.span import run_span
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.linear import matrix_of
from turnout.hosts.view import BlockView
from turnout.route import Site
from turnout.routers.gate import GateRouter
from turnout.units.experts import real_rows


class Watch:
    """What enters the blocks of some sites, and how much each expert adds, of real tokens.

    states, weights: by site key, lists of (K, D) and (K, E).
    """

    def __init__(self, model: PreTrainedModel, sites: Iterable[Site]) -> None:
        views = {v.place: v for v in blocks_of(model, find_family(model))}
        self.states: dict[str, list[Tensor]] = {}
        self.weights: dict[str, list[Tensor]] = {}
        self.model, self.inputs = model, dict[str, Tensor]()
        self.real: Tensor | slice = slice(None)
        self._handles = []
        for site in sites:
            self._attach(site, views[site.place])

    def _attach(self, site: Site, view: BlockView) -> None:
        states = self.states[site.key] = []
        weights = self.weights[site.key] = []
        _, (_, out) = view.neurons()
        columns_EDF = matrix_of(out)[0].detach()
        columns_EDF = columns_EDF.view(len(columns_EDF), site.units, -1).transpose(0, 1)

        def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = args[0] if args else kwargs["hidden_states"]
            self.real = real_rows(self.model, view.stack.name, self.inputs, state)
            states.append(state.detach().flatten(0, -2)[self.real])

        def found(module: Any, args: tuple[Tensor, ...]) -> None:
            neuron_RF = args[0].detach().flatten(0, -2)[self.real]
            neuron_ERF = neuron_RF.view(len(neuron_RF), site.units, -1).transpose(0, 1)
            added_ERD = neuron_ERF @ columns_EDF.transpose(1, 2)
            weights.append(added_ERD.float().square().sum(-1).t())

        self._handles += [
            view.module.register_forward_pre_hook(enter, with_kwargs=True),
            out.register_forward_pre_hook(found),
        ]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def watch_experts(
    model: PreTrainedModel,
    router: GateRouter,
    batches: Iterable[Mapping[str, Any]],
    tokens: int = 20_000,
) -> Watch:
    """Run batches, whole, until so many real tokens were seen. Raises UserError for no tokens."""
    watch, count = Watch(model, router.sites), 0
    try:
        with evaluating(model):
            for batch in batches:
                inputs = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)}
                watch.inputs = inputs
                run_span(model, inputs, 0, None)
                count += len(watch.states[router.sites[0].key][-1])
                if count >= tokens:
                    break
    finally:
        watch.remove()
    if not count:
        raise UserError("there are no rows to teach gates over experts with")
    for key, parts in (*watch.states.items(), *watch.weights.items()):
        if not all(bool(part.isfinite().all()) for part in parts):
            raise UserError(f"what {key} reads or adds is not all finite: NaN in the host?")
    return watch


def teach_experts(
    model: PreTrainedModel,
    router: GateRouter,
    batches: Iterable[Mapping[str, Any]],
    *,
    tokens: int = 20_000,
    epochs: int = 4,
    rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Train a gate at site ``expert``, granularity ``token``, in place.

    Returns the part of what all experts add, in squared length, that the quarter of them holds that
    the gate now likes best: 0.25 would be chance, and what the best choice holds is at most 1.
    Raises UserError for a router that is no such gate, or no rows.
    """
    config = router.config
    by_token = config.site == "expert" and config.granularity == "token"
    if not by_token or config.shape == "recurrent" or config.shared:
        raise UserError(
            "teach_experts needs a gate at site expert, granularity: token, neither recurrent nor "
            "shared"
        )
    watch = watch_experts(model, router, batches, tokens)
    parameters = [p for name, p in router.named_parameters() if not name.startswith("spread")]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    generator, kept = torch.Generator().manual_seed(seed), []
    for place, site in enumerate(router.sites):
        state_KD, weight_KE = torch.cat(watch.states[site.key]), torch.cat(watch.weights[site.key])
        target_KE = weight_KE / weight_KE.sum(-1, keepdim=True).clamp_min(1e-12)
        with torch.enable_grad():
            for _ in range(epochs):
                for part in _shuffled(len(state_KD), generator, state_KD.device):
                    loss = F.cross_entropy(router.logit(place, state_KD[part]), target_KE[part])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        with torch.no_grad():
            best = router.logit(place, state_KD).topk(max(1, site.units // 4), -1).indices
            kept.append(float(target_KE.gather(-1, best).sum(-1).mean()))
    return sum(kept) / len(kept)


def _shuffled(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    return torch.randperm(count, generator=generator).to(device).split(512)
