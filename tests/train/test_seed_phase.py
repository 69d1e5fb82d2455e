"""The seed phase: units that learn as one are one unit, and then go their own ways."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import turnout
from turnout import UserError
from turnout.recipe import load
from turnout.train.pipeline import train

CLUSTERS: dict[str, Any] = {"kind": "random-unit", "adapters": 3, "top": 1}
COPIES: dict[str, Any] = {"kind": "cluster", "site": "expert", "split": "copied", "experts": 3}


def spread(model: Any) -> float:
    """The largest difference between two units of a block."""
    banks = model.turnout.units.parameters()
    return max(float((bank_U - bank_U[:1]).abs().max().detach()) for bank_U in banks)


def learned(work: Any, spec: dict[str, Any], share: float, **how: Any) -> Any:
    model = turnout.install(work.model(), [spec])
    work.fit(model, seed_phase=share, freeze="host", **how)
    return model


@pytest.mark.parametrize("spec", [CLUSTERS, COPIES], ids=["adapters", "copies"])
def test_units_stay_alike_for_as_long_as_they_are_asked_to(work: Any, spec: dict[str, Any]) -> None:
    start = turnout.install(work.model(), [spec]).turnout.units.state_dict()
    model = learned(work, spec, 1.0, out="whole")
    assert spread(model) == 0.0
    moved = [not torch.equal(v, start[k]) for k, v in model.turnout.units.state_dict().items()]
    assert all(moved)
    assert spread(learned(work, spec, 0.5, out="half")) > 0.0


def test_units_alike_learn_what_one_unit_would(work: Any) -> None:
    several = turnout.install(work.model(), [CLUSTERS])
    single = turnout.install(work.model(), [{**CLUSTERS, "adapters": 1}])
    start = {key: value[:1].clone() for key, value in several.turnout.units.state_dict().items()}
    single.turnout.units.load_state_dict(start)
    work.fit(several, seed_phase=1.0, freeze="host", out="several", clip=0.0)
    work.fit(single, freeze="host", out="single", clip=0.0)
    banks = several.turnout.units.named_parameters()
    for (name, found), wanted in zip(banks, single.turnout.units.parameters(), strict=True):
        assert not torch.equal(wanted, start[name])
        torch.testing.assert_close(found[:1], wanted, rtol=1e-3, atol=1e-5)


def test_goes_on_where_it_stopped(work: Any) -> None:
    whole = learned(work, CLUSTERS, 1.0, out="run", save_every=1)
    newest = max((work.folder / "run").glob("checkpoint-*"), key=lambda x: int(x.name[11:]))
    shutil.rmtree(newest)
    again = learned(work, CLUSTERS, 1.0, out="run", save_every=1)
    assert newest.is_dir()  # written anew: it did go on
    for found, wanted in zip(
        again.turnout.units.parameters(), whole.turnout.units.parameters(), strict=True
    ):
        assert torch.equal(found, wanted)


def test_needs_units(tmp_path: Path) -> None:
    recipe = load(tiny.save_recipe(tmp_path), ("train.seed_phase=0.5",))
    with pytest.raises(UserError, match=r"seed_phase: no router here has units"):
        train(recipe, tmp_path / "run", say=lambda _: None, progress=False)
    assert not (tmp_path / "run").exists()
