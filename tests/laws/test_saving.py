"""Hosts, law: what is saved and loaded again gives the same output, tied heads and all."""

from __future__ import annotations

from pathlib import Path

import torch
from hosts_table import Host

import turnout


def test_saved_and_loaded_is_the_same(host: Host, tmp_path: Path) -> None:
    gate = {"kind": "gate", "site": "ffn", "granularity": "token", "open": 0.1}
    model, inputs = turnout.install(host.build(), gate), host.inputs()
    for parameter in model.turnout.parameters():
        torch.nn.init.normal_(parameter)
    model.turnout.budget = 0.5
    model.save_pretrained(tmp_path)
    again = turnout.load(tmp_path)
    assert list(again.state_dict()) == list(model.state_dict())
    with torch.no_grad(), turnout.trace() as trace:
        before = model(**inputs)["logits"]
        after = again(**inputs)["logits"]
        expected = host.build()(**inputs)["logits"]
        plain = turnout.uninstall(again)(**inputs)["logits"]
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(plain, expected)
    assert 0 < float(turnout.trace_share(trace)) < 1
