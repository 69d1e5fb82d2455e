"""The dial: what a budget asks for is what is spent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import HOSTS, Host
from tiny import stacked
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.execute.pool import predict_bulk
from turnout.train import calibrate as calibrate_module
from turnout.train.calibrate import PASSES

SCORED = {
    "exit": {"kind": "exit", "hidden": 0},
    "exit-learned": {"kind": "exit", "criterion": "learned", "hidden": 0},
    "gate-token": {"kind": "gate", "granularity": "token"},
    "gate-ffn": {"kind": "gate", "site": "ffn"},
}


@pytest.fixture
def rows(work: Any) -> Any:
    return work.rows["train"]


def routed(work: Any, *specs: Any) -> PreTrainedModel:
    model = turnout.install(work.model(), specs)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.turnout.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", SCORED)
def test_the_share_spent_follows_the_budget(name: str, work: Any, rows: Any) -> None:
    model = routed(work, SCORED[name])
    table = turnout.calibrate(model, rows, work.collate)
    shares = [share for _, share in table]
    assert len(table) == PASSES and all(0 <= share <= 1 for share in shares)
    assert min(shares) < 0.5 < max(shares)
    spent = []
    for budget in (0.2, 0.35, 0.5, 0.65, 0.8):
        with model.turnout.at(budget):
            spent.append(predict_bulk(model, rows, work.collate).share)
    assert spent == sorted(spent)
    # the share of few rows moves in steps, by a text (or token) at a time
    assert np.abs(np.array(spent) - [0.2, 0.35, 0.5, 0.65, 0.8]).mean() < 0.1


@pytest.mark.parametrize("other", ["random-skip", "random-jump"])
def test_a_router_without_a_score_follows_the_same_budget(other: str, work: Any, rows: Any) -> None:
    """Half of the work is that router's; what both spend together is the budget."""
    site = "attention" if other == "random-skip" else "layer"
    specs = ({"kind": "gate", "site": "ffn", "granularity": "token"}, {"kind": other, "site": site})
    model = routed(work, *specs)
    model.turnout.seed = 1
    turnout.calibrate(model, rows, work.collate)
    for budget in (0.9, 0.75, 0.5):
        with model.turnout.at(budget):
            spent = predict_bulk(model, rows, work.collate).share
        assert spent == pytest.approx(budget, abs=0.06), budget


def test_the_table_falls_and_is_saved(work: Any, rows: Any, tmp_path: Any) -> None:
    model = routed(work, {"kind": "exit"})
    model.turnout.budget = 0.4
    turnout.calibrate(model, rows, work.collate)
    levels = model.turnout.all_routers()[0].levels
    shares = [share for share, _ in levels]
    assert shares == sorted(set(shares), reverse=True)
    assert [level for _, level in levels] == sorted(level for _, level in levels)
    assert model.turnout.budget == 0.4
    model.save_pretrained(tmp_path)
    again = turnout.load(tmp_path)
    assert again.turnout.all_routers()[0].levels == levels
    assert again.turnout.budget == 0.4


def test_two_routers_share_a_dial(work: Any, rows: Any) -> None:
    model = routed(work, {"kind": "gate", "site": "ffn"}, {"kind": "gate", "site": "attention"})
    turnout.calibrate(model, rows, work.collate)
    first, second = model.turnout.all_routers()
    assert [share for share, _ in first.levels] == [share for share, _ in second.levels]
    with model.turnout.at(0.5):
        assert predict_bulk(model, rows, work.collate).share == pytest.approx(0.5, abs=0.15)


def test_what_pays_least_is_shed_first_at_whichever_site(work: Any, rows: Any) -> None:
    model = routed(work, {"kind": "gate", "site": "ffn"}, {"kind": "gate", "site": "attention"})
    ffn, attention = model.turnout.all_routers()
    with torch.no_grad():
        ffn.bias.fill_(2.0)
        attention.bias.fill_(-2.0)
    turnout.calibrate(model, rows, work.collate)
    assert ffn.levels == attention.levels
    for budget in (0.9, 0.6):
        with model.turnout.at(budget):
            use = predict_bulk(model, rows, work.collate).use
        kept = [np.mean([use[site.key] for site in router.sites]) for router in (ffn, attention)]
        assert kept[0] > kept[1] + 0.05, (budget, kept)


def test_routers_without_scores_need_no_table(work: Any, rows: Any) -> None:
    model = routed(work, {"kind": "random-skip"})
    assert turnout.calibrate(model, rows, work.collate) == []
    assert model.config.turnout["levels"] == {"0_random_skip": []}


def test_labels_are_not_read(work: Any, rows: Any) -> None:
    one, other = (routed(work, {"kind": "exit"}) for _ in range(2))
    assert turnout.calibrate(one, rows, work.collate) == turnout.calibrate(
        other, rows.remove_columns("labels"), work.collate
    )


def test_what_cannot_be_calibrated(work: Any, rows: Any) -> None:
    with pytest.raises(UserError, match="needs a routed model"):
        turnout.calibrate(work.model(), rows, work.collate)
    model = routed(work, {"kind": "exit"})
    with pytest.raises(UserError, match="at least one row"):
        turnout.calibrate(model, rows.select([]), work.collate)
    with torch.no_grad():
        next(model.turnout.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="scores that are not finite"):
        turnout.calibrate(model, rows, work.collate)
    assert model.turnout.budget == 1.0


def test_stopped_halfway_the_dial_is_as_it_was(
    work: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = routed(work, {"kind": "exit"})
    turnout.calibrate(model, rows, work.collate)
    (router,) = model.turnout.all_routers()
    levels, passes = router.levels, []
    model.turnout.budget = 0.6

    def stopped(*args: Any, **kwargs: Any) -> Any:
        passes.append(router.levels)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return predict_bulk(*args, **kwargs)

    monkeypatch.setattr(calibrate_module, "predict_bulk", stopped)
    with pytest.raises(KeyboardInterrupt):
        turnout.calibrate(model, rows, work.collate)
    assert passes[0] != levels and router.levels == levels
    assert model.turnout.budget == 0.6


def rows_of(host: Host) -> list[dict[str, Any]]:
    """The host's own inputs, a dict a row; a decoder has to read its inputs off the labels."""
    inputs = host.inputs()
    if host.reads == "pairs":
        inputs["labels"] = inputs.pop("decoder_input_ids")
        inputs.pop("decoder_attention_mask")
    return [{name: value[i].tolist() for name, value in inputs.items()} for i in range(3)]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_every_host_has_a_dial(host: Host) -> None:
    model = host.build()
    turnout.install(model, [{"kind": "gate", "site": "ffn", "granularity": "token"}])
    generator = torch.Generator().manual_seed(2)
    for parameter in model.turnout.parameters():
        parameter.data.normal_(generator=generator)
    rows = rows_of(host)
    table = turnout.calibrate(model, rows, stacked)
    with model.turnout.at(0.5):
        found = predict_bulk(model, rows, stacked, batch_tokens=1)
    least = min(share for _, share in table)
    assert 0 <= least < 0.5 and 0.2 < found.share < 0.8
    assert len(found.logits) == 3 and all(np.isfinite(row).all() for row in found.logits)
