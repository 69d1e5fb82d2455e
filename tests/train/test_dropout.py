"""The rate of dropout reaches every place where a host drops."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, Host
from torch import nn

from turnout.train.fit import set_dropout


def logits(host: Host, model: nn.Module, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**host.inputs()).logits


def dropping(host: Host) -> nn.Module:
    """A host in training, whose own rates are not 0; other noise of training is turned off."""
    model = host.build()
    for module in model.modules():
        if isinstance(getattr(module, "layerdrop", None), float):
            module.layerdrop = 0.0
    model.config.apply_spec_augment = False
    return model.train()


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_no_dropout_is_none_anywhere(host: Host) -> None:
    model = dropping(host)
    set_dropout(model, 0.5, None)
    assert not torch.equal(logits(host, model, 0), logits(host, model, 1))
    set_dropout(model, 0.0, None)
    quiet = logits(host, model, 0)
    assert torch.equal(quiet, logits(host, model, 1))
    torch.testing.assert_close(quiet, logits(host, deepcopy(model).eval(), 0))


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_attention_has_a_rate_of_its_own(name: str) -> None:
    host = BY_NAME[name]
    model = dropping(host)
    set_dropout(model, 0.0, 0.5)
    assert not torch.equal(logits(host, model, 0), logits(host, model, 1))
    set_dropout(model, 0.5, 0.0)
    inside = [m for n, m in model.named_modules() if n.endswith(("attention.self", "attention"))]
    assert all(
        m.dropout.p == 0.0 for m in inside if isinstance(getattr(m, "dropout", 0), nn.Module)
    )
    before = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    set_dropout(model, None, None)
    assert before == {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
