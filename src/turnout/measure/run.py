"""``turnout measure RUN``: from a run folder to results.json, report.html and a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import datasets
from transformers import PreTrainedModel

from turnout.execute.pool import predict_bulk
from turnout.files import write_text
from turnout.hosts.cut import static_layers
from turnout.measure.config import MeasureConfig
from turnout.measure.flops import depth_of
from turnout.measure.models import measure_models
from turnout.measure.report import html
from turnout.measure.results import Results
from turnout.measure.static import static_model
from turnout.tasks.base import Task

NO_TEST = (
    "The recipe names no test file: these are validation examples, which also calibrated the "
    "router's dial, so its quality may look better than it is."
)
TRAINED = (
    "The routed model and the cut models start from the trained dense host and are trained on for "
    "as many steps, on the same data, with the same objectives and teacher. The dense host has not "
    "had these steps, so it can be beaten in quality too: the cut models are the fair comparison."
)


class RunFolder(Protocol):
    """What a measurement needs of a run folder; ``turnout.run.Run`` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def recipe(self) -> Any: ...
    @property
    def checkpoints(self) -> Path: ...
    def static(self, name: str) -> Path: ...
    def task(self) -> Task[Any]: ...
    def tokenizer(self) -> Any: ...
    def load_dense(self) -> PreTrainedModel: ...
    def load_routed(self) -> PreTrainedModel: ...


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
    dense, routed = run.load_dense(), run.load_routed()
    for name in wanted.static:
        static_layers(name, depth_of(dense))  # a wrong name is said before anything long begins
    task, tokenizer = run.task(), run.tokenizer()
    splits = task.load()
    static = static_models(run, wanted, dense, task, splits, tokenizer, progress=progress, say=say)
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
        notes=(*([] if "test" in splits else [NO_TEST]), TRAINED),
        progress=progress,
    )
    write_report(results, run.path)
    return results


def static_models(
    run: RunFolder,
    config: MeasureConfig,
    dense: PreTrainedModel,
    task: Task[Any],
    splits: dict[str, datasets.Dataset],
    tokenizer: Any,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, PreTrainedModel]:
    """The cut models that a run is compared with: loaded, or trained where they are missing."""
    names = list(dict.fromkeys(config.static))
    train = validation = splits["train"].select([])
    taught = None
    weights = run.recipe.objectives
    if missing := [name for name in names if not (run.static(name) / "config.json").is_file()]:
        say(f"training {len(missing)} cut model(s) to compare with: {', '.join(missing)}")
        train = task.encode(splits["train"], tokenizer)
        validation = task.encode(splits["validation"], tokenizer)
        if weights.distill:
            rows = [dict(row) for row in train]
            taught = predict_bulk(dense, rows, task.collator(tokenizer)).logits
    found = {
        name: static_model(
            name,
            run.static(name),
            dense,
            task,
            train,
            validation,
            tokenizer,
            run.recipe.train,
            weights,
            taught,
            run.checkpoints / f"static-{name}",
            progress=progress,
            say=say,
        )
        for name in names
    }
    with contextlib.suppress(OSError):  # not there, or not empty
        run.checkpoints.rmdir()
    return found


def write_report(results: Results, run: str | Path) -> Path:
    """Write results.json and report.html into a run folder; the path of the page."""
    run = Path(run)
    results.save(run / "results.json")
    write_text(run / "report.html", html(results))
    return run / "report.html"
