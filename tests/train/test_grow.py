"""Clusters that are added later leave the others as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.train.grow import add_cluster, cluster_of, only_unit

HOST = BY_NAME["bert"]


KINDS: dict[str, dict[str, Any]] = {
    "adapters": {"kind": "cluster", "adapters": 2},
    "copies": {"kind": "cluster", "site": "expert", "experts": 2, "split": "copied"},
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def routed(kind: str = "adapters") -> Any:
    model = turnout.install(HOST.build(), [KINDS[kind]])
    generator = torch.Generator().manual_seed(0)
    for parameter in model.turnout.units.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def embedded(model: Any) -> torch.Tensor:
    """What the router clusters, of the three inputs."""
    router = cluster_of(model)
    with torch.no_grad():
        hidden = model(**HOST.inputs("none"), output_hidden_states=True)["hidden_states"][0]
    return router.embed(hidden, None)


@every_kind
def test_a_new_cluster_takes_its_own_and_leaves_the_rest(kind: str) -> None:
    model = routed(kind)
    pooled = embedded(model)
    cluster_of(model).fit(pooled[:2].numpy())
    grown = add_cluster(model, pooled[2:].numpy())
    with torch.no_grad():
        before = model(**HOST.inputs("none"))["logits"]
        after = grown(**HOST.inputs("none"))["logits"]
        plain = HOST.build()(**HOST.inputs("none"))["logits"]
    assert cluster_of(grown).weight_BU(pooled).argmax(1).tolist()[2] == 2
    torch.testing.assert_close(after[:2], before[:2])
    torch.testing.assert_close(after[2], plain[2])  # a fresh unit changes nothing
    assert cluster_of(model).count == 2 and cluster_of(grown).count == 3


@every_kind
def test_only_the_new_unit_learns(kind: str) -> None:
    model = routed(kind)
    grown = add_cluster(model, embedded(model)[2:].numpy())
    start = {key: value.clone() for key, value in grown.state_dict().items()}
    with only_unit(grown, 2) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            grown(**HOST.inputs("none"))["logits"].square().sum().backward()
            optimizer.step()
    for key, value in grown.state_dict().items():
        if ".units." in key:
            assert torch.equal(start[key][:2], value[:2]), key
            assert not torch.equal(start[key][2], value[2]), key
        else:
            assert torch.equal(start[key], value), key
    assert all(parameter.requires_grad for parameter in grown.parameters())


def test_what_cannot_grow_is_refused() -> None:
    with pytest.raises(UserError, match="of kind cluster"):
        add_cluster(turnout.install(HOST.build(), ["gate"]), np.zeros((1, 32)))
    experts = turnout.install(HOST.build(), [{"kind": "cluster", "site": "expert", "experts": 4}])
    with pytest.raises(UserError, match="units of their own"):
        add_cluster(experts, np.zeros((1, 32)))
    for rows in (np.zeros((0, 32)), np.full((2, 32), np.nan)):
        with pytest.raises(UserError, match=r"at least one row|NaN or infinity"):
            add_cluster(routed(), rows)
