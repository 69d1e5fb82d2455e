"""What sites cost."""

from __future__ import annotations

from hosts_table import BY_NAME

from turnout.hosts import FAMILIES
from turnout.hosts.attach import blocks_of
from turnout.hosts.price import price, site_of


def test_prices_by_hand() -> None:
    """BERT of width 32 and 48: two FLOPs for each weight of each matrix."""
    model = BY_NAME["bert"].build()
    view = blocks_of(model, FAMILIES["bert"])[0]
    square, ffn = 2 * 32 * 32, 2 * 2 * 32 * 48
    attention = price(view, "attention")
    assert (attention.row, attention.idle) == (4 * square, 2 * square)
    assert attention.pair == 4 * 32  # scores and mix: 2 FLOPs each for 32 channels
    assert (price(view, "ffn").row, price(view, "ffn").idle) == (ffn, 0)
    layer = price(view, "layer")
    assert (layer.row, layer.idle, layer.pair) == (4 * square + ffn, 2 * square, 128)
    assert layer.bytes == sum(p.numel() * 4 for p in view.module.parameters())


def test_hidden_tokens_have_no_price() -> None:
    view = blocks_of(BY_NAME["bert"].build(), FAMILIES["bert"])[1]
    site = site_of(view, "layer", hidden=True)
    assert site.key == "encoder.1.layer" and site.cost.idle == 0
    assert site.cost.row == price(view, "layer").row
