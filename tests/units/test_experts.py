"""Splitting a dense feed-forward network into experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, Host
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.hosts.attach import blocks_of, find_family
from turnout.units.experts import clustered_order, dealt_order, random_order, split_by_data

GATE: dict[str, Any] = {"kind": "gate", "site": "expert", "experts": 4, "granularity": "token"}


def routed(host: Host, **more: Any) -> PreTrainedModel:
    return turnout.install(host.build(), [{**GATE, **more}])


def test_every_order_holds_each_neuron_once() -> None:
    features = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    for order in (
        random_order(24),
        clustered_order(features, 4),
        dealt_order(features[:, 0].abs(), 4),
    ):
        assert sorted(order.tolist()) == list(range(24))


def test_like_neurons_come_to_the_same_expert() -> None:
    centres = torch.eye(4).repeat_interleave(6, 0)
    shuffle = random_order(24)
    noise = 0.05 * torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    order = clustered_order((centres + noise)[shuffle], 4)
    kinds = centres.argmax(1)[shuffle][order].view(4, 6)
    assert (kinds == kinds[:, :1]).all()


def test_clusters_are_of_one_size_however_unlike_the_neurons_are() -> None:
    features = torch.cat([torch.ones(20, 3), -torch.eye(3)[:1].repeat(4, 1)])
    assert sorted(clustered_order(features, 4).tolist()) == list(range(24))


def test_importance_is_dealt_to_all_alike() -> None:
    importance = torch.tensor([9.0, 1, 8, 2, 7, 3, 6, 4])
    shares = importance[dealt_order(importance, 2)].view(2, 4)
    assert shares[0].tolist() == [9, 7, 4, 2] and shares[1].tolist() == [8, 6, 3, 1]


DENSE = [host for host in HOSTS if host.name not in ("mixtral", "qwen3_moe", "olmoe")]


@pytest.mark.parametrize("host", DENSE, ids=lambda host: host.name)
def test_the_split_host_is_the_host(host: Host, tmp_path: Any) -> None:
    model, inputs = host.build(), host.inputs()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(**inputs)["logits"]
        turnout.install(model, [{**GATE, "stack": host.stacks[0]}])
        assert any(not torch.equal(state[key], model.state_dict()[key]) for key in state)
        torch.testing.assert_close(model(**inputs)["logits"], before, rtol=1e-4, atol=1e-4)
        model.turnout.budget = 0.5
        routed = model(**inputs)["logits"]
        model.save_pretrained(tmp_path)
        again = turnout.load(tmp_path)
        torch.testing.assert_close(again(**inputs)["logits"], routed)
        for each in (model, again):
            turnout.uninstall(each)
            after = each.state_dict()
            assert list(after) == list(state)
            assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("how", ["coactivation", "importance"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_split_by_data_changes_the_experts_and_not_the_host(name: str, how: str) -> None:
    host = BY_NAME[name]
    model = routed(host, split="random")
    inputs = host.inputs()
    first = {place: order.clone() for place, order in model.turnout.orders.items()}
    with torch.no_grad():
        before = model(**inputs)["logits"]
    batches = [{**inputs, "labels": torch.tensor([0, 1, 1])}]
    split_by_data(model, batches, how)
    assert any(not torch.equal(first[k], order) for k, order in model.turnout.orders.items())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs)["logits"], before, rtol=1e-4, atol=1e-4)
    plain = turnout.uninstall(model).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in host.build().state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_coactive_neurons_come_together() -> None:
    """Neurons with the same input weights are active together."""
    model = BY_NAME["bert"].build()
    view = blocks_of(model, find_family(model))[0]
    (_, into), *_ = view.neurons()[0]
    with torch.no_grad():
        half = into.weight.shape[0] // 2
        into.weight[half:] = into.weight[:half]
        into.bias[half:] = into.bias[:half]
    turnout.install(model, [{**GATE, "experts": 2, "split": "random"}])
    split_by_data(model, [BY_NAME["bert"].inputs()], "coactivation")
    order = model.turnout.orders["encoder.0"]
    twins = torch.stack([order[: len(order) // 2] % half, order[len(order) // 2 :] % half])
    together = sum(len(set(row.tolist())) for row in twins)
    assert together < 1.5 * half  # each expert holds twins; a random split would hold few


def test_what_cannot_be_split_is_named() -> None:
    with pytest.raises(UserError, match=r"48 neurons, which 7 experts.*choose one of 2, 3, 4, 6"):
        routed(BY_NAME["bert"], experts=7)
    with pytest.raises(UserError, match="in a model with a router at site expert"):
        split_by_data(BY_NAME["bert"].build(), [], "coactivation")
    with pytest.raises(UserError, match="no rows to look at"):
        split_by_data(routed(BY_NAME["bert"]), [], "coactivation")


def test_adapters_beside_the_neurons_of_experts_are_refused() -> None:
    lora = {"kind": "gate", "site": "adapter", "targets": ["query", "in"], "modulate": True}
    with pytest.raises(UserError, match="adapters there cannot have the targets in and out"):
        turnout.install(BY_NAME["bert"].build(), [GATE, lora])
    turnout.install(BY_NAME["bert"].build(), [GATE, {**lora, "targets": ["query"]}])


def test_a_decoder_has_a_mask_of_its_own() -> None:
    """Sources and targets of other lengths, and padding in the target."""
    host = BY_NAME["t5"]
    model = routed(host, split="random", stack="decoder")
    inputs = host.inputs()
    for how in ("coactivation", "importance"):
        split_by_data(model, [{**inputs, "labels": inputs["decoder_input_ids"].contiguous()}], how)


def test_a_frozen_host_has_important_neurons_too() -> None:
    model = routed(BY_NAME["bert"], split="random")
    model.requires_grad_(False)
    inputs = BY_NAME["bert"].inputs()
    split_by_data(model, [{**inputs, "labels": torch.tensor([0, 1, 1])}], "importance")
    with pytest.raises(UserError, match="the batches hold no labels"):
        split_by_data(model, [inputs], "importance")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not all finite"):
        split_by_data(model, [inputs], "coactivation")
