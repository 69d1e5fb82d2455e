"""Gates over experts learn from the host which experts matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor

import turnout
from turnout import UserError
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.linear import matrix_of
from turnout.train.teach_experts import teach_experts, watch_experts
from turnout.units.experts import neuron_importance

GATE: dict[str, Any] = {
    "kind": "gate",
    "site": "expert",
    "granularity": "token",
    "keep": "top-k",
    "experts": 8,
}


def batches(count: int = 12) -> list[dict[str, Tensor]]:
    """Sequences of which some end in padding."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 60, (8, 10), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert"])
def test_lengths_are_those_of_what_experts_add(name: str) -> None:
    model = turnout.install(BY_NAME[name].build(), [GATE])
    (router,) = model.turnout.all_routers()
    one = batches(1)
    seen = watch_experts(model, router, one)
    site = router.sites[0]
    weight_KE = torch.cat(seen.weights[site.key])
    assert weight_KE.shape == (76, 8) and torch.cat(seen.states[site.key]).shape == (76, 32)
    view = blocks_of(model, find_family(model))[0]
    kept: list[Tensor] = []
    _, (_, out) = view.neurons()
    handle = out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        model(**one[0])
    handle.remove()
    neuron_KF = kept[0].flatten(0, -2)[one[0]["attention_mask"].bool().flatten()]
    expected = torch.zeros_like(neuron_KF)
    each = neuron_KF.shape[1] // 8
    expected[:, 3 * each : 4 * each] = neuron_KF[:, 3 * each : 4 * each]
    added_KD = expected @ matrix_of(out)[0].t()
    torch.testing.assert_close(weight_KE[:, 3], added_KD.square().sum(-1), rtol=1e-3, atol=1e-6)


def test_gates_find_the_experts_that_matter() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [GATE])
    view = blocks_of(model, find_family(model))[0]
    with torch.no_grad():  # the third expert of the first block does nearly all
        matrix_of(view.neurons()[1][1])[0][:, 12:18] *= 30
    state = {k: v.clone() for k, v in model.state_dict().items() if "turnout" not in k}
    (router,) = model.turnout.all_routers()
    held = teach_experts(model, router, batches(), epochs=20)
    assert 0.3 < held <= 1.0
    model.turnout.budget = 1 / 8
    with torch.no_grad(), turnout.trace() as trace:
        model(**batches(1)[0])
    weight_BTU = trace[router.sites[0].key].weight_BTU
    assert (weight_BTU[1:].sum(-1) == 1).all() and (weight_BTU[1:, :, 2] == 1).all()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_importance_is_told_in_the_order_of_the_host() -> None:
    plain = turnout.install(BY_NAME["bert"].build(), [{**GATE, "split": "parameters"}])
    other = turnout.install(BY_NAME["bert"].build(), [{**GATE, "split": "random"}])
    labelled = [{**batch, "labels": torch.tensor([0, 1] * 4)} for batch in batches(2)]
    one, two = (neuron_importance(model, labelled) for model in (plain, other))
    assert one.keys() == two.keys()
    for place, value_F in one.items():
        torch.testing.assert_close(value_F, two[place], rtol=1e-3, atol=1e-6)


def test_what_cannot_be_taught() -> None:
    for wrong in ({"granularity": "sequence"}, {"shape": "recurrent"}):
        model = turnout.install(BY_NAME["bert"].build(), [{**GATE, **wrong}])
        (router,) = model.turnout.all_routers()
        with pytest.raises(UserError, match="teach_experts needs a gate"):
            teach_experts(model, router, batches(1))
    model = turnout.install(BY_NAME["bert"].build(), [GATE])
    (router,) = model.turnout.all_routers()
    with pytest.raises(UserError, match="no rows"):
        teach_experts(model, router, [])
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not all finite"):
        teach_experts(model, router, batches(1))


def test_a_decoder_is_taught_by_its_own_tokens() -> None:
    """Its mask is not that of what it reads, which is longer here."""
    host = BY_NAME["t5"]
    model = turnout.install(host.build(), [{**GATE, "stack": "decoder"}])
    (router,) = model.turnout.all_routers()
    inputs = host.inputs()
    seen = watch_experts(model, router, [inputs])
    mask = inputs.get("decoder_attention_mask", torch.ones_like(inputs["decoder_input_ids"]))
    assert len(torch.cat(seen.states[router.sites[0].key])) == int(mask.sum())
