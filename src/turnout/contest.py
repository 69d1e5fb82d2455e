"""`turnout compare`: several routers on one recipe, trained alike and measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table

from turnout.errors import UserError
from turnout.files import make_folder, read_json, write_json
from turnout.hosts.cut import cuts_of
from turnout.install import install, uninstall
from turnout.measure.frontier import front, line, line_at, relative_time
from turnout.measure.models import measure_models
from turnout.measure.results import Arm, Results
from turnout.measure.results import load as load_results
from turnout.measure.run import NO_TEST, static_models, write_report
from turnout.recipe import Recipe
from turnout.routers import AnyRouterConfig
from turnout.run import Run
from turnout.tasks import TASKS
from turnout.train.host import host_labels, open_host
from turnout.train.pipeline import train
from turnout.train.precision import moved
from turnout.workers import train_at_once

OWN = "recipe"
# One line a contender: a router at the site where it is at home.
CONTENDERS: dict[str, dict[str, Any]] = {
    "exit": {"kind": "exit"},
    "gate": {"kind": "gate"},
    "gate-recurrent": {"kind": "gate", "shape": "recurrent"},
    "gate-token": {"kind": "gate", "site": "ffn", "granularity": "token", "hold_first": 1},
    "gate-head": {"kind": "gate", "site": "head"},
    "gate-expert": {"kind": "gate", "site": "expert", "granularity": "token", "keep": "top-k"},
    "attention": {"kind": "attention", "hold_first": 1},
    "token-attention": {
        "kind": "token-attention",
        "keep": "top-k",
        "visible": False,
        "hold_first": 2,
        "least": 0.1,
    },
    "policy": {"kind": "policy", "hold_first": 1},
    "q-learning": {"kind": "q-learning", "hold_first": 1},
    "random-jump": {"kind": "random-jump", "hold_first": 1},
}
SPEEDS = (1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Standing:
    """One contender: its quality at each speed-up, and what a cut model and random skipping have
    there; None where it was not measured as fast. seconds: of its training."""

    name: str
    quality: dict[float, float | None]
    over_cut: dict[float, float | None]
    over_random: dict[float, float | None]
    seconds: float | None

    @property
    def rank(self) -> tuple[int, float]:
        """How many of the speeds it reaches, then the mean difference from cut models there."""
        found = [value for value in self.over_cut.values() if value is not None]
        return len(found), sum(found) / len(found) if found else 0.0


def compare(
    recipe: Recipe,
    names: Sequence[str],
    out: str | Path,
    *,
    dense: Path | None = None,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Results:
    """Train one routed model a contender from the same dense host, and measure all in one run.

    names: of CONTENDERS; ``recipe`` is the recipe's own routers; ``all`` is every one. dense: a
    host that was trained before, as of ``train``. jobs: contenders that are trained at once, each
    with its share of the cores (the time each takes is then not what it would take alone). Leaves a
    run folder a contender in ``out``, beside results.json, report.html and comparison.json. Started
    again, it goes on. Raises UserError for an unknown name, and whatever training raises.
    """
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    out = make_folder(Path(out))
    wanted = _suited(recipe, chosen(names), "all" in names, say)
    made = {name: with_router(recipe, name) for name in wanted}
    first = train(
        made[wanted[0]], out / wanted[0], dense=dense, only_dense=True, say=say, progress=progress
    )
    if jobs > 1:
        train_at_once({out / name: made[name] for name in wanted}, first.dense, jobs, say)
    runs: dict[str, Run] = {}
    for name in wanted:
        say(f"== {name}")
        runs[name] = train(made[name], out / name, dense=first.dense, say=say, progress=progress)
    results = _measure(first, runs, recipe, say, progress)
    write_report(results, out)
    costs = {name: training_seconds(run) for name, run in runs.items()}
    table = [vars_of(found) for found in standings(results, costs)]
    write_json(out / "comparison.json", {"speeds": list(SPEEDS), "standings": table})
    return results


def _suited(
    recipe: Recipe, names: Sequence[str], some: bool, say: Callable[[str], None]
) -> list[str]:
    """The contenders that fit the host, found out before anything is trained. some: leave out the
    others with a word; else the first raises its UserError."""
    labels = host_labels(recipe.model) if recipe.train.epochs == 0 else None
    task = TASKS[recipe.task.kind](recipe.task, labels)
    task.load()
    model, _ = open_host(recipe.model, task)
    fitting = []
    for name in names:
        try:
            uninstall(install(model, with_router(recipe, name).routers))
        except UserError as error:
            if not some:
                raise
            say(f"{name} is left out: {error}")
        else:
            fitting.append(name)
    if not fitting:
        raise UserError("no contender fits this host")
    return fitting


def chosen(names: Sequence[str]) -> list[str]:
    """The contenders that some names mean. Raises UserError for an unknown one."""
    known = [*CONTENDERS, OWN]
    wanted = list(CONTENDERS) if "all" in names else []
    for name in names:
        if name not in (*known, "all"):
            raise UserError(f"unknown contender {name!r}; known: all, {', '.join(known)}")
        if name != "all" and name not in wanted:
            wanted.append(name)
    if not wanted:
        raise UserError("name at least one contender, or all")
    return wanted


def with_router(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a contender's router in place of its own."""
    if name == OWN:
        return recipe
    router = TypeAdapter(AnyRouterConfig).validate_python(CONTENDERS[name])
    train = (
        recipe.train if router.owns_units else recipe.train.model_copy(update={"seed_phase": 0.0})
    )
    return recipe.model_copy(update={"routers": [router], "train": train})


def training_seconds(run: Run) -> float | None:
    """What the routed stage of a run took."""
    path = run.path / "training.json"
    return read_json(path).get("routed", {}).get("seconds") if path.is_file() else None


def _measure(
    first: Run, runs: Mapping[str, Run], recipe: Recipe, say: Callable[[str], None], progress: bool
) -> Results:
    dense, task, tokenizer = moved(first.load_dense()), first.task(), first.tokenizer()
    splits = task.load()
    cuts = cuts_of(dense, recipe.measure.static)
    static = static_models(first, cuts, dense, task, splits, tokenizer, progress=progress, say=say)
    return measure_models(
        dense,
        {name: run.load_routed() for name, run in runs.items()},
        static,
        task,
        tokenizer,
        splits.get("test", splits["validation"]),
        recipe.measure,
        name=recipe.model,
        notes=(
            *([] if "test" in splits else [NO_TEST]),
            "Each routed model and each cut model starts from the same dense host and is trained "
            "for as many steps, on the same data, with the same objectives and teacher.",
        ),
        progress=progress,
    )


def standings(results: Results, costs: Mapping[str, float | None]) -> list[Standing]:
    """Every contender against cut models and random skipping at equal measured time, best first."""
    cut = line(results, "static")
    by_router: dict[str, list[Arm]] = {}
    for arm in results.family("routed"):
        by_router.setdefault(arm.router or "routed", []).append(arm)
    found = []
    for name, arms in by_router.items():
        drawn = [arm for arm in results.family("random") if arm.place == arms[0].place]
        chance = front((relative_time(arm), arm.quality.value) for arm in [results.dense, *drawn])
        own = front((relative_time(arm), arm.quality.value) for arm in [results.dense, *arms])
        quality = {speed: line_at(own, 1 / speed) for speed in SPEEDS}
        found.append(
            Standing(
                name,
                quality,
                {speed: _less(quality[speed], line_at(cut, 1 / speed)) for speed in SPEEDS},
                {speed: _less(quality[speed], line_at(chance, 1 / speed)) for speed in SPEEDS},
                costs.get(name),
            )
        )
    return sorted(found, key=lambda standing: standing.rank, reverse=True)


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def vars_of(standing: Standing) -> dict[str, Any]:
    """A standing as JSON."""
    return {
        "name": standing.name,
        "training_seconds": standing.seconds,
        **{
            field: {f"{speed:g}x": value for speed, value in getattr(standing, field).items()}
            for field in ("quality", "over_cut", "over_random")
        },
    }


def read_comparison(folder: str | Path) -> dict[str, Any]:
    """What ``compare`` wrote: speeds, and standings best first."""
    return read_json(Path(folder) / "comparison.json")


def table(folder: str | Path) -> Table:
    """The comparison in a folder that ``compare`` left, for the terminal."""
    results, found = load_results(Path(folder) / "results.json"), read_comparison(folder)
    metric = results.task.headline
    shown = Table(
        title=f"{metric} at equal measured time; dense {results.dense.quality.value:.3f}",
        caption="below: points above cut models of the same time / above random skipping",
    )
    shown.add_column("router")
    for speed in found["speeds"]:
        shown.add_column(f"{speed:g}x", justify="right")
    shown.add_column("training", justify="right")
    for row in found["standings"]:
        cells = [_cell(row, f"{speed:g}x") for speed in found["speeds"]]
        seconds = row["training_seconds"]
        shown.add_row(row["name"], *cells, "-" if seconds is None else f"{seconds:,.0f} s")
    return shown


def _cell(row: Mapping[str, Any], speed: str) -> str:
    quality = row["quality"][speed]
    if quality is None:
        return "not as fast"
    return (
        f"{quality:.3f}\n{_points(row['over_cut'][speed])} / {_points(row['over_random'][speed])}"
    )


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
