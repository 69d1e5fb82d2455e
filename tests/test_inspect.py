"""Every host family can be looked at from its config alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts_table import Host
from rich.console import Console, RenderableType

from turnout import UserError
from turnout.hosts.attach import find_family
from turnout.inspect import inspect


def text(what: RenderableType) -> str:
    console = Console(width=140)
    with console.capture() as caught:
        console.print(what)
    return caught.get()


def test_sites_of_every_family(host: Host, tmp_path: Path) -> None:
    config = host.config()
    config.architectures = [host.model]
    config.save_pretrained(tmp_path)
    model = host.build()
    found = text(inspect(str(tmp_path)))
    assert host.model in found and find_family(model).name in found
    assert f"{sum(p.numel() for p in model.parameters()):,}" in found
    for stack in host.stacks:
        for kind in ("layer", "attention", "ffn"):
            assert f"{stack}.2.{kind}" in found


def test_a_config_that_no_model_fits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}'
    )
    with pytest.raises(UserError, match=r"no model fits its config\.json: .*\(10\)"):
        inspect(str(tmp_path))


def test_a_family_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "architectures": null}')
    with pytest.raises(UserError):
        inspect(str(tmp_path))
