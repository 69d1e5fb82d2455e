"""The plainly cut models of a run: fewer layers, trained like the routed model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from turnout.hosts.cut import cut_host
from turnout.measure.folder import RunFolder
from turnout.train.data import Data
from turnout.train.fit import fit
from turnout.train.saving import save


def missing_cuts(run: RunFolder, names: Sequence[str]) -> list[str]:
    """The cut models of these names that are not trained yet."""
    return [name for name in names if not (run.static(name) / "config.json").is_file()]


def train_static(
    run: RunFolder,
    name: str,
    dense: PreTrainedModel,
    data: Data,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Train the cut model ``name`` (``first-3``, ``every-other``) of a run; its folder has it whole
    or not.

    It gets what the routed model gets: the same start (the trained dense host), data, number of
    steps, objectives and teacher. A stopped training goes on from its checkpoints. Raises UserError
    for a wrong name.
    """
    config, checkpoints = run.recipe.train, run.checkpoints / f"static-{name}"
    model = cut_host(dense, name)
    # without routers nothing would be left to train in a frozen host
    if config.freeze in ("host", "units"):
        config = config.model_copy(update={"freeze": "none"})
    fit(
        model,
        data,
        config.second(),
        run.recipe.objectives,
        checkpoints,
        logs=run.logs / name,
        title=name,
        progress=progress,
        say=say,
    )
    save(model, data.tokenizer, run.static(name))
    shutil.rmtree(checkpoints, ignore_errors=True)
