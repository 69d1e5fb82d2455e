"""Train the units of clusters apart from each other, each on its own part of the data, then join.

Branch-train (c-BTM, Gururangan et al. 2023, arXiv 2303.14177): centres are fitted first; then each
cluster's unit is trained on the rows nearest to it, from the same start, in any order and on any
machine; joining copies the units into one model, which routes by the same centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.files import atomic_dir
from turnout.objectives import ObjectivesConfig
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.fit import fit
from turnout.train.grow import cluster_of, only_unit
from turnout.train.prepare import pooled_states


def shards(model: PreTrainedModel, data: Data) -> list[Data]:
    """The training rows of each cluster: those that are nearest to its centre."""
    router = cluster_of(model)
    pooled_ND = torch.from_numpy(pooled_states(model, router, data.train, data.collate))
    nearest_N = router.weight_BU(pooled_ND.to(router.centre.device)).argmax(-1).cpu().numpy()
    return [_rows(data, np.flatnonzero(nearest_N == unit)) for unit in range(router.count)]


def train_branch(
    model: PreTrainedModel,
    shard: Data,
    unit: int,
    config: TrainConfig,
    out: str | Path,
    weights: ObjectivesConfig | None = None,
    **how: Any,
) -> Path:
    """Train one unit on its rows, in place, all else frozen; returns the file that holds it.

    model: as it was before any branch was trained. how: what else ``fit`` takes. Raises UserError
    for a cluster without rows, or a model without clusters that have units of their own.
    """
    cluster_of(model)
    if not len(shard.train):
        raise UserError(f"cluster {unit} has no training rows; fit fewer clusters")
    frozen = config.model_copy(update={"freeze": "host", "weight_decay": 0.0, "seed_phase": 0.0})
    with only_unit(model, unit):
        fit(model, shard, frozen, weights or ObjectivesConfig(), out, **how)
    routing: Any = model.turnout
    units = {name: bank[unit] for name, bank in routing.units.named_parameters()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in units.items()}
    with atomic_dir(Path(out) / "unit") as temp:
        save_file(tensors, temp / "unit.safetensors")
    return Path(out) / "unit" / "unit.safetensors"


@torch.no_grad()
def join_branches(model: PreTrainedModel, files: Sequence[str | Path]) -> PreTrainedModel:
    """Copy trained units into a model, in place: one file a cluster, in their order. Raises
    UserError for another number of files, or one that does not fit; nothing is changed then."""
    router = cluster_of(model)
    if len(files) != router.count:
        raise UserError(f"the model has {router.count} clusters; {len(files)} branches were given")
    routing: Any = model.turnout
    banks = dict(routing.units.named_parameters())
    units = [_read(Path(file), banks) for file in files]
    for place, unit in enumerate(units):
        for name, value in unit.items():
            banks[name][place].copy_(value)
    return model


def _read(file: Path, banks: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The tensors of one branch, which must be those of the model's units."""
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    wanted = {name: tuple(bank.shape[1:]) for name, bank in banks.items()}
    if {name: tuple(value.shape) for name, value in found.items()} != wanted:
        raise UserError(f"{file}: holds the unit of another model")
    return found


def _rows(data: Data, places: np.ndarray) -> Data:
    """Some of the training rows, with what a teacher says of them."""
    taught = data.teacher_logits
    logits = None if taught is None else [taught[place] for place in places]
    return replace(data, train=data.train.select(places), teacher_logits=logits)
