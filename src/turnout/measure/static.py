"""The plainly cut models of a run: fewer layers, trained like the routed model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel

from turnout.hosts.cut import keep_layers, static_layers
from turnout.measure.flops import depth_of
from turnout.objectives import ObjectivesConfig
from turnout.tasks.base import Task
from turnout.train.config import TrainConfig
from turnout.train.fit import fit
from turnout.train.saving import load_host, save


def static_model(
    name: str,
    folder: str | Path,
    dense: PreTrainedModel,
    task: Task[Any],
    train: datasets.Dataset,
    validation: datasets.Dataset,
    tokenizer: Any,
    config: TrainConfig,
    weights: ObjectivesConfig,
    teacher_logits: list[np.ndarray] | None,
    checkpoints: str | Path,
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> PreTrainedModel:
    """The cut model ``name`` (``first-3``, ``every-other``): loaded from ``folder`` if it is there,
    else cut from the trained dense host, trained and saved there, whole or not at all.

    It gets what the routed model gets: the same start, data, number of steps, objectives and
    teacher. A stopped training goes on from ``checkpoints``. Raises UserError for a wrong name.
    """
    keep = static_layers(name, depth_of(dense))
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return load_host(folder).eval()
    model = keep_layers(dense, keep)
    # without routers nothing would be left to train in a frozen host
    unfrozen = config.model_copy(update={"freeze": "none"}) if config.freeze == "host" else config
    epochs = config.routed_epochs or config.epochs
    if epochs > 0:
        fit(
            model,
            task,
            train,
            validation,
            tokenizer,
            unfrozen,
            weights,
            checkpoints,
            teacher=dense if weights.hidden > 0 else None,
            teacher_logits=teacher_logits,
            epochs=epochs,
            title=name,
            progress=progress,
            say=say,
        )
    save(model, tokenizer, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return model.eval()
