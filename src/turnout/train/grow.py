"""Add a cluster to a model that serves others already, and train it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.install import install, uninstall
from turnout.routers.cluster import ClusterRouter, check_rows


@torch.no_grad()
def add_cluster(model: PreTrainedModel, pooled_ND: np.ndarray) -> PreTrainedModel:
    """A copy of a model with one more cluster, and a fresh unit for it in each block.

    model: routed by one router of kind cluster whose units are its own: adapters, or copies of the
    feed-forward networks. pooled_ND: embedded rows of the new
    cluster (see ``train.prepare.pooled_states``). Centres and units of the others stay as they are;
    inputs that are nearest to the new centre go to the new unit, which leaves the host as it is
    until it is trained. Raises UserError for another model, or rows that are empty or not finite.
    """
    old = cluster_of(model)
    check_rows(pooled_ND, old.host.hidden)
    before: Any = model.turnout
    grown = uninstall(deepcopy(model))
    install(grown, [old.config.with_units(old.count + 1)])
    new, after = cluster_of(grown), _routing(grown)
    for name, bank in after.units.named_parameters():
        bank[: old.count].copy_(before.units.get_parameter(name))
    new.fitted.copy_(old.fitted)
    new.centre[:-1].copy_(old.centre)
    new.centre[-1].copy_(torch.from_numpy(pooled_ND.mean(0)))
    new.precision[:-1].copy_(old.precision)
    new.bias[:-1].copy_(old.bias)
    new.precision[-1].copy_(old.precision.mean(0))
    if old.config.method == "mixture":  # as likely as the others, with a width between theirs
        halves = old.precision.log().sum(1) / 2
        new.bias[-1] = (old.bias + halves).mean() - new.precision[-1].log().sum() / 2
    else:
        new.bias[-1] = old.bias.mean()
    after.budget = before.budget
    return grown.train(model.training)


@contextmanager
def only_unit(model: PreTrainedModel, unit: int) -> Iterator[list[Tensor]]:
    """Inside, only one unit of each block learns; yields the parameters to give an optimizer.

    The others get a gradient of exactly 0, so an optimizer without weight decay leaves them as
    they are, bit for bit.
    """
    parameters = list(_routing(model).units.parameters())
    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)

    def mask(grad: Tensor) -> Tensor:
        kept = torch.zeros_like(grad)
        kept[unit] = grad[unit]
        return kept

    handles = []
    for parameter in parameters:
        parameter.requires_grad_(True)
        handles.append(parameter.register_hook(mask))
    try:
        yield parameters
    finally:
        for handle in handles:
            handle.remove()
        for parameter, trains in needed.items():
            parameter.requires_grad_(trains)


def cluster_of(model: PreTrainedModel) -> ClusterRouter:
    """The cluster router of a model. Raises UserError unless it is its only one, over units of its
    own."""
    routers = _routing(model).all_routers() if hasattr(model, "turnout") else []
    if len(routers) != 1 or not isinstance(routers[0], ClusterRouter):
        raise UserError("this needs a host with one router, of kind cluster")
    if not len(_routing(model).units):
        raise UserError(
            "this needs clusters with units of their own: at site adapter, or experts with "
            "split: copied; other units share what the host has"
        )
    return routers[0]


def _routing(model: PreTrainedModel) -> Any:
    return model.turnout
