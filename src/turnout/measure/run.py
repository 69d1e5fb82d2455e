"""``turnout measure RUN``: from a run folder to results.json, report.html and a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel

from turnout.files import write_text
from turnout.hosts.cut import cuts_of
from turnout.measure.config import MeasureConfig
from turnout.measure.folder import RunFolder
from turnout.measure.models import measure_models
from turnout.measure.report import html
from turnout.measure.results import Results
from turnout.measure.static import missing_cuts, train_static
from turnout.tasks.base import Task
from turnout.train.data import encode
from turnout.train.precision import moved
from turnout.train.saving import load_host

NO_TEST = (
    "The recipe names no test file: these are validation examples, which also calibrated the "
    "router's dial, so its quality may look better than it is."
)
TRAINED = (
    "The routed model and the cut models start from the trained dense host and are trained on for "
    "as many steps, on the same data, with the same objectives and teacher. The dense host has not "
    "had these steps, so it can be beaten in quality too: the cut models are the fair comparison."
)
FROM_CUT = (
    "The routed model starts from the trained cut model of its layers, which is one of those it is "
    "compared with, and was trained on from there as its recipe says. Cut models start from the "
    "trained dense host, with the same data, objectives and teacher."
)
PATIENT = "Each training stopped by itself (train.patience), so numbers of steps may differ."


def measure(
    run: RunFolder,
    config: MeasureConfig | None = None,
    *,
    command: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Results:
    """Measure a trained run, and leave results.json and report.html in its folder.

    config: None = that of the recipe. Cut models that are not there yet are trained first. Raises
    UserError for an unfinished run, bad data, or a cut that the host does not allow.
    """
    wanted: MeasureConfig = run.recipe.measure if config is None else config
    dense, routed = moved(run.load_dense()), run.load_routed()
    cuts = cuts_of(dense, wanted.static)  # a wrong name is said before anything long begins
    task, tokenizer = run.task(), run.tokenizer()
    splits = task.load()
    static = static_models(run, cuts, dense, task, splits, tokenizer, progress=progress, say=say)
    results = measure_models(
        dense,
        routed,
        static,
        task,
        tokenizer,
        splits.get("test", splits["validation"]),
        wanted,
        name=run.recipe.model,
        command=command,
        notes=(
            *([] if "test" in splits else [NO_TEST]),
            FROM_CUT if run.recipe.train.routed_start == "cut" else TRAINED,
            *([PATIENT] if run.recipe.train.patience is not None else []),
        ),
        progress=progress,
    )
    write_report(results, run.path)
    return results


def static_models(
    run: RunFolder,
    names: Sequence[str],
    dense: PreTrainedModel,
    task: Task[Any],
    splits: dict[str, datasets.Dataset],
    tokenizer: Any,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, PreTrainedModel]:
    """The cut models that a run is compared with: loaded, or trained where they are missing."""
    if missing := missing_cuts(run, names):
        say(f"training {len(missing)} cut model(s) to compare with: {', '.join(missing)}")
        data = encode(task, splits, tokenizer, dense)
        data = data.taught_by(dense, run.recipe.objectives, run.dense)
        for name in missing:
            train_static(run, name, dense, data, progress=progress, say=say)
    with contextlib.suppress(OSError):  # not there, or not empty
        run.checkpoints.rmdir()
    return {name: load_host(run.static(name)).eval() for name in names}


def write_report(results: Results, run: str | Path) -> Path:
    """Write results.json and report.html into a run folder; the path of the page."""
    run = Path(run)
    results.save(run / "results.json")
    write_text(run / "report.html", html(results))
    return run / "report.html"
