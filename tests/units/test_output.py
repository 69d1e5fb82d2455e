"""The routing layer before the heads of tasks."""

from __future__ import annotations

import torch
import transformers as hf
from hosts_table import COMMON
from torch.nn import functional as F

import turnout
from turnout.units.output import OutputBank


def test_a_unit_is_linear_relu_linear_relu_times_a_scale() -> None:
    torch.manual_seed(0)
    bank = OutputBank(3, 5, 8)
    rows = torch.randn(4, 8)
    assert (bank.change(1, rows) == 0).all()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    normal = F.layer_norm(rows, (8,))
    inner = (normal @ bank.first[1].t() + bank.first_bias[1]).relu()
    expected = bank.scale[1] * (inner @ bank.second[1].t() + bank.second_bias[1]).relu()
    torch.testing.assert_close(bank.change(1, rows), expected)
    assert bank.flops() == 2 * (5 * 8 + 8 * 5)


def test_one_unit_is_the_plain_layer_and_adds_to_what_a_head_reads() -> None:
    torch.manual_seed(0)
    heads = {"topic": turnout.HeadConfig(kind="class", width=3)}
    backbone = hf.BertModel(hf.BertConfig(**COMMON), add_pooling_layer=False)
    model = turnout.with_heads(backbone, heads).eval()
    ids, mask = torch.randint(3, 60, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad():
        mean = model.backbone(ids, mask)[0].mean(1)
    turnout.install(model, {"kind": "mixture", "adapters": 1})
    bank = model.turnout.units["output"]  # type: ignore[union-attr, index]
    with torch.no_grad():
        for scale in bank.scale:
            scale.fill_(0.7)
        read = mean + bank.change(0, mean)
        found = model(ids, mask).logits
    torch.testing.assert_close(found, model.heads["topic"].linear(read))  # type: ignore[union-attr, operator]
