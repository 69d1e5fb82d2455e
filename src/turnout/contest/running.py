"""Train contenders from one dense host and measure all of them in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from turnout.contest.contenders import chosen, with_router
from turnout.contest.standings import Comparison, load, merged, points_of
from turnout.contest.tables import arms, ranking
from turnout.errors import UserError
from turnout.files import make_folder, read_json, write_text
from turnout.hosts.cut import cuts_of
from turnout.install import install, uninstall
from turnout.measure.models import measure_models
from turnout.measure.results import Results
from turnout.measure.run import NO_TEST, static_models, write_report
from turnout.recipe import Recipe
from turnout.run import Run
from turnout.tasks import TASKS
from turnout.train.host import host_labels, open_host
from turnout.train.pipeline import train
from turnout.train.precision import moved
from turnout.workers import train_at_once


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
    run folder a contender in ``out``, beside results.json, report.html, comparison.json and
    comparison.md. Started again, it goes on. Raises UserError for an unknown name, and whatever
    training raises.
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
    seed = recipe.train.seed
    _write(Comparison(results.task.headline, [seed], [points_of(results)], [costs]), out)
    return results


def compare_seeds(
    recipe: Recipe,
    names: Sequence[str],
    out: str | Path,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Comparison:
    """``compare`` once a seed, in ``out/seed-N``, and all of it as one comparison in ``out``.

    Started again, it goes on with the training, and measures every seed anew. Raises UserError
    where a seed is named twice, and as ``compare`` does.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds must be different whole numbers from 0 up, got {list(seeds)}")
    out = make_folder(Path(out))
    found = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        say(f"=== seed {seed}")
        changed = recipe.train.model_copy(update={"seed": seed})
        made = recipe.model_copy(update={"train": changed})
        compare(made, names, folder, jobs=jobs, say=say, progress=progress)
        found.append(load(folder))
    whole = merged(found)
    _write(whole, out)
    return whole


def _write(comparison: Comparison, out: Path) -> None:
    comparison.save(out)
    write_text(
        out / "comparison.md", f"{ranking(comparison).markdown()}\n{arms(comparison).markdown()}"
    )


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
            uninstall(install(model, with_router(recipe, name).routers, noise=recipe.noise))
        except UserError as error:
            if not some:
                raise
            say(f"{name} is left out: {error}")
        else:
            fitting.append(name)
    if not fitting:
        raise UserError("no contender fits this host")
    return fitting


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
