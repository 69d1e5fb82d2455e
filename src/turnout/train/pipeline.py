"""`turnout train`: the dense host, then the routed model; each stage whole or absent on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from turnout.errors import UserError
from turnout.files import copy_folder, read_json, write_json
from turnout.hosts.cut import cut_host, cuts_of
from turnout.install import install
from turnout.measure.static import missing_cuts, train_static
from turnout.objectives import ObjectivesConfig
from turnout.recipe import Recipe
from turnout.run import Run, check_same, is_run, open_run, start_run
from turnout.tasks import TASKS
from turnout.tasks.base import Task
from turnout.train.calibrate import calibrate
from turnout.train.checkpoints import last_checkpoint
from turnout.train.data import Data, encode, listed
from turnout.train.fit import check_one_process, fit, freeze
from turnout.train.host import host_labels, open_host
from turnout.train.noise import noise_facts
from turnout.train.precision import moved
from turnout.train.prepare import (
    check_alone,
    check_counts,
    check_data,
    check_stacks,
    counted,
    prepare,
)
from turnout.train.saving import load_host, save

CALIBRATION_ROWS = 512
SHORT = 0.05  # share above the budget that is worth a word
Say = Callable[[str], None]


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    dense: Path | None = None,
    only_dense: bool = False,
    say: Say = print,
    progress: bool = True,
) -> Run:
    """Train what a recipe describes into a run folder, or go on with what was begun there.

    dense: folder of a dense host that was trained by the same recipe but for its routers; it is
    copied. only_dense: stop after the dense host and what it teaches; started again, it goes on.
    The same recipe, data and machine give the same weights, stopped or not, as far as nothing is
    chosen by time: the number format (``precision: auto``), the way experts are multiplied, and
    prices in seconds. Raises UserError before any training for what is wrong with recipe, data,
    host or routers.
    """
    run = open_run(out) if is_run(out) else None
    if run is not None:
        check_same(run, recipe)
        if only_dense and run.dense.is_dir():
            return run
        if run.routed.is_dir():
            say(f"{run.path} is trained already; nothing to do")
            return start_run(out, recipe, run.labels)
    check_one_process()
    labels = run.labels if run else host_labels(recipe.model) if recipe.train.epochs == 0 else None
    task = TASKS[recipe.task.kind](recipe.task, labels)
    if task.together > 1:
        raise UserError(
            f"task.kind: {recipe.task.kind} learns from pairs: write it as one of `tasks` "
            "(docs/tasks.md)"
        )
    raw = task.load()
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in raw.items())
    labelled = f"; {len(task.labels)} labels: {_listed(task.labels)}" if task.labels else ""
    say(f"data: {sizes}{labelled}")
    model, tokenizer = _host(recipe, task, run)
    data = encode(task, raw, tokenizer, model)
    check_data(recipe.routers, len(data.train))
    run = start_run(out, recipe, task.labels)
    if not run.dense.is_dir() and dense is not None:
        copy_folder(dense, run.dense)
    elif not run.dense.is_dir():
        _train_dense(run, model, data, say, progress)
    if only_dense:
        data.taught_by(moved(run.load_dense()), recipe.objectives, run.dense)
        return run
    _train_routed(run, data, say, progress)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def _host(recipe: Recipe, task: Task[Any], run: Run | None) -> tuple[PreTrainedModel, Any]:
    """The host to start from and its tokenizer, once routers and cuts are known to fit it."""
    set_seed(recipe.train.seed)  # of a new head's first weights
    if run is not None and run.dense.is_dir():
        model, tokenizer = load_host(run.dense), run.tokenizer()
    else:
        model, tokenizer = open_host(recipe.model, task, new_head=recipe.train.epochs > 0)
    check_alone(recipe.routers)
    if recipe.train.seed_phase and not any(config.owns_units for config in recipe.routers):
        raise UserError(
            "train.seed_phase: no router here has units that could learn as one: it is for site "
            "adapter, and for experts with split: copied"
        )
    routed = install(_start(model, recipe), recipe.routers, noise=recipe.noise)
    check_stacks(routed)
    task.check_routed(routed)
    check_counts(model, recipe.routers)
    cuts_of(model, recipe.measure.static)
    return model, tokenizer


def _start(dense: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """What routers are installed on: a copy of the dense host, cut where the recipe says so."""
    name = recipe.train.routed_layers
    return deepcopy(dense) if name is None else cut_host(dense, name)


def _train_dense(run: Run, model: PreTrainedModel, data: Data, say: Say, progress: bool) -> None:
    config = run.recipe.train
    say(f"dense host: {run.recipe.model}, {_millions(model)} M parameters")
    start, whole = time.perf_counter(), last_checkpoint(run.checkpoints / "dense") is None
    if config.epochs > 0:
        fit(
            model,
            data,
            config,
            ObjectivesConfig(),  # the labels alone: there is no teacher yet
            run.checkpoints / "dense",
            logs=run.logs / "dense",
            title="dense host",
            progress=progress,
            say=say,
        )
    _note_cost(run, "dense", model, start if whole else None)
    save(model, data.tokenizer, run.dense)
    shutil.rmtree(run.checkpoints / "dense", ignore_errors=True)
    _tell_score(model, data, start, say)


def _train_routed(run: Run, data: Data, say: Say, progress: bool) -> None:
    recipe = run.recipe
    # read back even when it is at hand: then going on later starts from the very same state
    dense = moved(run.load_dense())
    data = data.taught_by(dense, recipe.objectives, run.dense)
    host = _routed_host(run, dense, data, say, progress)
    set_seed(recipe.train.seed)
    start, whole = time.perf_counter(), last_checkpoint(run.checkpoints / "routed") is None
    routers = counted(host, recipe.routers, data.train, data.collate, say)
    model = install(host, routers, noise=recipe.noise)
    found = prepare(model, data.train, data.collate, say)
    routing: Any = model.turnout
    kinds = [router.kind for router in recipe.routers]
    kinds += [f"{noise.kind} noise" for noise in recipe.noise]
    places = f"{len(routing.sites)} sites, " if routing.sites else ""
    places += f"noise in {len(routing.noise)} places, " if routing.noise else ""
    say(f"routed model: {', '.join(kinds)}: {places}{_millions(routing)} M parameters")
    config = recipe.train.routed()
    freeze(model, config.freeze)
    if any(parameter.requires_grad for parameter in model.parameters()):
        fit(
            model,
            data,
            config,
            recipe.objectives,
            run.checkpoints / "routed",
            logs=run.logs / "routed",
            title="routed model",
            progress=progress,
            say=say,
        )
    else:
        say("nothing to train: the host is frozen and these routers have no weights")
    if routing.noise:
        found["noise"] = noise_facts(routing)
    _note_cost(run, "routed", model, start if whole else None, found)
    routing.budget = recipe.train.budget
    rows = data.validation.select(range(min(len(data.validation), CALIBRATION_ROWS)))
    table = calibrate(model, listed(rows), data.collate, recipe.measure.batch_tokens)
    if table and (least := min(share for _, share in table)) > routing.budget + SHORT:
        say(f"the dial goes no lower than {least:.0%}: the routers are never sure enough to skip")
    save(model, data.tokenizer, run.routed)
    _tell_score(model, data, start, say)


def _routed_host(
    run: Run, dense: PreTrainedModel, data: Data, say: Say, progress: bool
) -> PreTrainedModel:
    """What the routed model starts from: the dense host, cut or not, or the trained cut model that
    measuring compares with, so that both share it."""
    if run.recipe.train.routed_start == "dense":
        return _start(dense, run.recipe)
    name = str(run.recipe.train.routed_layers)
    for missing in missing_cuts(run, [name]):
        train_static(run, missing, dense, data, progress=progress, say=say)
    return load_host(run.static(name))


def _note_cost(
    run: Run,
    stage: str,
    model: PreTrainedModel,
    start: float | None,
    found: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Write what a stage cost into training.json: seconds, and parameters that were trained. start:
    None = it was stopped on the way, and nobody knows what it took (null). found: what preparing
    found out, by router."""
    seconds = None if start is None else round(time.perf_counter() - start, 1)
    path = run.path / "training.json"
    known = read_json(path) if path.is_file() else {}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = {"seconds": seconds, "trained_parameters": trained}
    more = {"found": found} if found else {}
    write_json(path, {**known, stage: {**cost, **more}})


def _tell_score(model: PreTrainedModel, data: Data, start: float, say: Say) -> None:
    seconds = time.perf_counter() - start
    told = data.task.told(data.total(model))
    routing: Any = getattr(model, "turnout", None)
    at = "" if routing is None or not routing.sites else f" at budget {routing.budget:g}"
    say(f"  {data.task.headline} on validation{at}: {told}, after {seconds:,.0f} s")


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:,.2f}"


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
