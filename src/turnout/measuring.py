"""`turnout measure`: open a run, train the cut models it lacks, measure all, write the report."""

from __future__ import annotations

import shutil
from pathlib import Path

from turnout.measure.results import Results
from turnout.measure.run import measure_models, write_report
from turnout.measure.static import static_model
from turnout.run import open_run
from turnout.train.pipeline import Say, encode, teacher_logits


def measure_run(
    path: str | Path, *, say: Say = print, progress: bool = True
) -> tuple[Results, Path]:
    """The results of a run, and the page that shows them; both stand in the run folder too.

    Measured on the test set, on validation where the recipe names no test set. Raises UserError:
    not a finished run, or data that is no longer where the recipe says.
    """
    run = open_run(path)
    routed, dense, recipe = run.load_routed(), run.load_dense(), run.recipe
    task = run.task()
    data = encode(task, task.load(), run.tokenizer())
    missing = [name for name in recipe.measure.static if not run.static(name).is_dir()]
    logits = teacher_logits(dense, data, recipe.objectives) if missing else None
    static = {}
    for name in recipe.measure.static:
        if name in missing:
            say(f"cut model: {name}")
        static[name] = static_model(
            name,
            run.static(name),
            dense,
            task,
            data.rows["train"],
            data.rows["validation"],
            data.tokenizer,
            recipe.train,
            recipe.objectives,
            logits or [],
            run.checkpoints / name,
            progress=progress,
            say=say,
        )
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    split = "test" if "test" in data.raw else "validation"
    notes = () if split == "test" else ("Measured on the validation set: there is no test set.",)
    results = measure_models(
        dense, routed, static, task, data.tokenizer, data.raw[split], recipe.measure,
        name=recipe.model, notes=notes, progress=progress,
    )  # fmt: skip
    return results, write_report(results, run.path)
