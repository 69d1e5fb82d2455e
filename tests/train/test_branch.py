"""Branches: units trained apart are those of one model once they are joined."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import turnout
from turnout import UserError
from turnout.train.branch import join_branches, shards, train_branch
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.grow import cluster_of
from turnout.train.prepare import prepare

CONFIG = TrainConfig(epochs=1, batch_size=8, precision="fp32", dropout=0.0)


def routed(work: Any) -> tuple[Any, Data]:
    model = turnout.install(work.model(), [{"kind": "cluster", "adapters": 3}])
    data = Data(work.task, work.tokenizer, work.rows["train"], work.rows["validation"])
    prepare(model, data.train, data.collate, say=lambda _: None)
    return model, data


def test_branches_are_trained_apart_and_joined(work: Any, tmp_path: Path) -> None:
    model, data = routed(work)
    start = deepcopy(model.state_dict())
    parts = shards(model, data)
    assert sum(len(part.train) for part in parts) == len(data.train)
    files = []
    for unit, part in enumerate(parts):
        branch = deepcopy(model)
        where = tmp_path / str(unit)
        files.append(train_branch(branch, part, unit, CONFIG, where, progress=False))
        for key, value in branch.state_dict().items():
            same = torch.equal(value, start[key])
            if ".units." not in key:
                assert same, key
            else:
                others = [u for u in range(3) if u != unit]
                assert torch.equal(value[others], start[key][others]), key
    joined = join_branches(model, files)
    for name, bank in joined.turnout.units.named_parameters():
        for unit, file in enumerate(files):
            assert torch.equal(bank[unit], load_file(file)[name])
            assert ".b." not in name or bank[unit].abs().sum() > 0  # it has learned
    assert cluster_of(joined).count == 3


def test_branches_that_do_not_fit_change_nothing(work: Any, tmp_path: Path) -> None:
    model, data = routed(work)
    start = deepcopy(model.state_dict())
    file = train_branch(
        deepcopy(model), shards(model, data)[0], 0, CONFIG, tmp_path, progress=False
    )
    with pytest.raises(UserError, match="3 clusters; 1 branches"):
        join_branches(model, [file])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut\.safetensors: cannot be read"):
        join_branches(model, [file, file, cut])
    wider = turnout.install(work.model(), [{"kind": "cluster", "adapters": 3, "rank": 2}])
    with pytest.raises(UserError, match="the unit of another model"):
        join_branches(wider, [file] * 3)
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    empty = shards(model, data)[0]
    none = Data(empty.task, empty.tokenizer, empty.train.select([]), empty.validation)
    with pytest.raises(UserError, match="cluster 1 has no training rows"):
        train_branch(model, none, 1, CONFIG, tmp_path)
