"""The plainly cut models of a run: fewer layers, trained like the routed model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from turnout.hosts.cut import cut_host
from turnout.objectives import ObjectivesConfig
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.fit import fit
from turnout.train.saving import save


def train_static(
    name: str,
    folder: str | Path,
    dense: PreTrainedModel,
    data: Data,
    config: TrainConfig,
    weights: ObjectivesConfig,
    checkpoints: str | Path,
    *,
    logs: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Train the cut model ``name`` (``first-3``, ``every-other``); ``folder`` has it whole or not.

    It gets what the routed model gets: the same start (the trained dense host), data, number of
    steps, objectives and teacher. A stopped training goes on from ``checkpoints``. Raises UserError
    for a wrong name.
    """
    model = cut_host(dense, name)
    # without routers nothing would be left to train in a frozen host
    if config.freeze == "host":
        config = config.model_copy(update={"freeze": "none"})
    fit(
        model,
        data,
        config.second(),
        weights,
        checkpoints,
        logs=logs,
        title=name,
        progress=progress,
        say=say,
    )
    save(model, data.tokenizer, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
