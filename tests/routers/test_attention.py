"""Units by query-key score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor

import turnout
from turnout.routers.attention import _among

HOST = BY_NAME["bert"]


def passed(spec: dict[str, Any], budget: float, random: bool = True) -> tuple[Any, Tensor, Tensor]:
    """The router, and logits and weights of all units (B, U), of one pass in inference."""
    model = turnout.install(HOST.build(), [{"kind": "attention", **spec}]).eval()
    (router,) = model.turnout.all_routers()
    if random:
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter)
    model.turnout.budget = budget
    with torch.no_grad(), turnout.trace() as trace:
        model(**HOST.inputs())
    memory = model.turnout.current_flow().memory
    (logit_BU,) = (value for (_, name), value in memory.items() if name == "logit")
    return router, logit_BU, torch.cat([r.weight_BTU[:, 0] for r in trace.values()], -1)


@pytest.mark.parametrize("keep", ["threshold", "top-k"])
def test_with_equal_keys_the_model_is_the_host(keep: str) -> None:
    model, inputs = HOST.build().eval(), HOST.inputs()
    with torch.no_grad():
        before = model(**inputs)["logits"]
        turnout.install(model, [{"kind": "attention", "keep": keep}])
        assert torch.equal(model(**inputs)["logits"], before)


def test_logits_are_queries_times_keys() -> None:
    model = turnout.install(HOST.build(), [{"kind": "attention", "width": 16}]).eval()
    (router,) = model.turnout.all_routers()
    torch.nn.init.normal_(router.key["encoder"])
    inputs, states = HOST.inputs(), []
    handle = model.base_model.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: states.append(args[0])
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    mask = inputs["attention_mask"][:, :, None].float()
    pooled = (states[0] * mask).sum(1) / mask.sum(1)
    pooled = torch.nn.functional.layer_norm(pooled, pooled.shape[-1:])
    wanted = (pooled @ router.query["encoder"].t()) @ router.key["encoder"].t() / 4
    found = model.turnout.current_flow().memory[("encoder.0.layer", "logit")]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("site, units", [("layer", 3), ("head", 12)])
def test_top_k_keeps_the_best_and_renormalises(site: str, units: int) -> None:
    share = 2 / 3
    _, logit, weight = passed({"site": site, "keep": "top-k"}, share)
    count = round(units * share)
    assert weight.shape == (3, units) and ((weight > 0).sum(1) == count).all()
    best = logit.topk(count).indices
    assert (weight.gather(1, best) > 0).all()
    wanted = logit.gather(1, best).softmax(-1) * count  # 1 on average over what is kept
    torch.testing.assert_close(weight.gather(1, best), wanted)


def test_a_threshold_keeps_what_comes_near_the_best() -> None:
    router, logit, _ = passed({}, 1.0)
    router.levels = [(0.9, 0.5)]
    level = router.level(0.5)
    score = (logit - logit.amax(-1, keepdim=True)).exp()
    assert level == 0.5 and 0 < (score > level).sum() < score.numel()
    keep = router._keep(logit, model_flow(0.5), 0)
    assert torch.equal(keep > 0, score > level)


def model_flow(budget: float) -> Any:
    """A flow of inference at a budget."""
    return turnout.flow.Flow({}, 0, budget, False)


def test_without_combining_the_host_decides_how_much() -> None:
    _, _, weight = passed({"keep": "top-k", "combine": False}, 2 / 3)
    assert set(weight.unique().tolist()) == {0.0, 1.0}


def test_weights_are_those_of_the_kept_units_however_far_behind_the_best() -> None:
    logit = torch.tensor([[90.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    keep = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    kept = _among(logit, keep)
    share = kept[0] / kept[0].sum()
    torch.testing.assert_close(share, torch.tensor([0.0, 0.7310586, 0.2689414]))
    assert kept[1].sum() == 0 and torch.isfinite(kept).all()


def test_training_draws_other_units_and_shares() -> None:
    spec = {"kind": "attention", "least": 0.3}
    model = turnout.install(HOST.build(), [spec]).train()
    kept = []
    for seed in range(40):
        model.turnout.seed = seed
        with torch.no_grad(), turnout.trace() as trace:
            model(**HOST.inputs())
        kept.append(torch.cat([route.active_BT[:, :1] for route in trace.values()], 1))
    kept_NU = torch.cat(kept).float()
    assert set(kept_NU.sum(1).tolist()) == {1.0, 2.0, 3.0}
    assert (kept_NU.mean(0) - kept_NU.mean()).abs().max() < 0.15  # equal keys: no unit is better
