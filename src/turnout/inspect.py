"""`turnout inspect`: where a model can be routed, what each part costs, and what a run learned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Group, RenderableType
from rich.table import Table
from transformers import AutoModel, PreTrainedModel

from turnout.errors import UserError, first_line
from turnout.files import read_json
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.price import site_of
from turnout.route import Site, SiteKind
from turnout.run import is_run, open_run
from turnout.train.host import open_config
from turnout.train.saving import load

# what a host has by itself; experts and adapters are a router's to make
KINDS: tuple[SiteKind, ...] = ("layer", "attention", "ffn", "head")


def inspect(target: str) -> Group:
    """Tables about a model (folder, packaged name, name on the Hub; its weights are not read), a
    run folder, or a routed model that was saved.

    Raises UserError for a model that is not there or of an unknown family.
    """
    folder = Path(target)
    if is_run(target) or (folder / "routed").is_dir():
        return inspect_run(target)
    saved = folder / "config.json"
    if saved.is_file() and "turnout" in read_json(saved):
        return routed_tables({"model": str(folder)}, load(folder))
    return inspect_model(target)


def inspect_model(name: str) -> Group:
    """The sites of a host, from its config alone."""
    config = open_config(name)
    try:
        model = _empty(config)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(
            f"model: {name}: no model fits its config.json: {first_line(error)}"
        ) from None
    family = find_family(model)
    sites = [
        site_of(view, kind)
        for view in blocks_of(model, family)
        for kind in KINDS
        if kind == "layer" or (view.heads if kind == "head" else getattr(view.stack, kind))
    ]
    facts = facts_table(
        {
            "model": f"{type(model).__name__} ({name})",
            "family": family.name,
            "parameters": f"{_count(model):,}",
            "stacks": ", ".join(dict.fromkeys(f"{s.stack}: {s.depth} blocks" for s in sites)),
        }
    )
    return Group(facts, _sites("sites where a router can be installed", sites))


def _empty(config: Any) -> PreTrainedModel:
    """A model of a config, without weights."""
    named = getattr(transformers, (config.architectures or ["AutoModel"])[0], AutoModel)
    with torch.device("meta"):
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named(config)
        return AutoModel.from_config(config, trust_remote_code=False)


def inspect_run(path: str) -> Group:
    """A run's routers, their sites, and the dial that calibration found."""
    run = open_run(path)
    facts = {
        "run": str(run.path),
        "started from": run.recipe.model,
        "task": f"{run.recipe.task.kind}, {len(run.labels)} labels: {', '.join(run.labels)}",
    }
    return routed_tables(facts, load(run.path))


def routed_tables(about: dict[str, str], model: PreTrainedModel) -> Group:
    """What a routed model holds: its routers, their sites and dials. about: said first."""
    routing: Any = model.turnout
    facts = {
        **about,
        "host": type(model).__name__,
        "parameters": f"{_count(model):,}, of which routers {_count(routing):,}",
        "budget": f"{routing.budget:g} when loaded",
    }
    if routing.noise:
        places = Counter(noise.config.kind for noise in routing.all_noise())
        said = ", ".join(f"{kind} in {count} blocks" for kind, count in places.items())
        facts["noise"] = f"{said}; scale {routing.noise_scale:g} when loaded"
    parts: list[RenderableType] = [facts_table(facts)]
    for name, router in routing.routers.items():
        settings = router.config.model_dump(exclude_defaults=True, exclude={"kind"})
        said = ", ".join(f"{key}: {value}" for key, value in settings.items())
        parts.append(_sites(f"router {name}" + (f" ({said})" if said else ""), router.sites))
        if router.levels:
            parts.append(_dial(name, router.levels))
    return Group(*parts)


def facts_table(facts: dict[str, str]) -> Table:
    """Names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(f"[bold]{name}", value)
    return table


def _sites(title: str, sites: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("site", "units", "FLOPs a token", "skipped", "a token pair", "weights"):
        table.add_column(column, justify="left" if column == "site" else "right")
    for site in sites:
        table.add_row(*_row(site))
    return table


def _row(site: Site) -> tuple[str, ...]:
    cost = site.cost
    flops = (_short(cost.row), _short(cost.idle), _short(cost.pair))
    return (site.key, str(site.units), *flops, f"{_short(cost.bytes)}B")


def _dial(name: str, levels: list[tuple[float, float]]) -> Table:
    table = Table(title=f"dial of {name}: share of the work spent at a threshold")
    table.add_column("share", justify="right")
    table.add_column("threshold", justify="right")
    for share, level in levels:
        table.add_row(f"{share:.3f}", f"{level:.4g}")
    return table


def _short(value: float) -> str:
    """1234567 as "1.23 M"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g} "


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
