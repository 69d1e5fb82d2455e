"""Train one model with the Trainer: what is frozen, which callbacks, where it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from turnout.errors import UserError
from turnout.files import make_folder, read_json, write_json
from turnout.hosts.attach import blocks_of, find_family
from turnout.objectives import ObjectivesConfig
from turnout.train.callbacks import CollapseCallback, ProgressLine
from turnout.train.checkpoints import last_checkpoint
from turnout.train.config import TrainConfig
from turnout.train.data import Data, with_teacher
from turnout.train.noise import NoiseCallback
from turnout.train.seed_phase import SeedPhase
from turnout.train.step_format import StepFormat, attention_of, step_format
from turnout.train.trainer import RoutedTrainer, routing_of

RATES = ("dropout", "attention_dropout", "activation_dropout", "dropout_rate")


def check_one_process() -> None:
    """Raise UserError where several processes were started: they would write one run folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "turnout train runs in one process; to train on several, use turnout.train.trainer."
            "RoutedTrainer in a script of your own"
        )


def fit(
    model: PreTrainedModel,
    data: Data,
    config: TrainConfig,
    weights: ObjectivesConfig,
    out: str | Path,
    *,
    logs: str | Path | None = None,
    title: str = "train",
    progress: bool = True,
    say: Callable[[str], None] = print,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: Callable[..., RoutedTrainer] = RoutedTrainer,
    held: Callable[[PreTrainedModel], None] | None = None,
    **more: Any,
) -> RoutedTrainer:
    """Train a model in place on encoded data and return its trainer.

    A checkpoint in ``out`` is continued exactly where it stopped, in the number format that it was
    begun in. logs: folder for TensorBoard, where the config asks for it; None = in ``out``. held:
    freezes what does not learn; None = as ``freeze`` says. more: for the trainer.
    """
    set_dropout(model, config.dropout, config.attention_dropout)
    freeze(model, config.freeze) if held is None else held(model)
    begun = last_checkpoint(out)
    format_ = _format(model, data, config, Path(out), begun is not None, say)
    scored = data.references is not None
    trainer = trainer_class(
        model=model,
        args=arguments_of(config, out, "eval_score" if scored else "eval_loss", format_.bf16),
        train_dataset=data.rows(),
        eval_dataset=data.validation,
        data_collator=with_teacher(data.collate),
        processing_class=data.tokenizer,
        train_config=config,
        weights=weights,
        teacher=data.teacher,
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    for callback in (ProgressLine(title, shown=progress), *callbacks):
        trainer.add_callback(callback)
    if config.tensorboard:
        trainer.add_callback(tensorboard(Path(out) / "logs" if logs is None else logs))
    if (routing := routing_of(model)) is not None:
        trainer.add_callback(CollapseCallback(say, config.budget))
        if routing.noise:
            trainer.add_callback(NoiseCallback(say))
        if config.seed_phase:
            trainer.add_callback(SeedPhase(routing, config.seed_phase))
    if scored:
        trainer.task_score = lambda: data.judged(model)
    if config.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    start = time.perf_counter()
    with attention_of(model, format_):
        trainer.train(resume_from_checkpoint=begun)
    spent = time.perf_counter() - start
    say(f"  {title}: {trainer.state.global_step:,} steps, {trainer.tokens / spent:,.0f} tokens/s")
    # Accelerate leaves its autocast around the forward method
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    return trainer


def _format(
    model: PreTrainedModel,
    data: Data,
    config: TrainConfig,
    out: Path,
    begun: bool,
    say: Callable[[str], None],
) -> StepFormat:
    """The number format to train in: that of the training begun in ``out``, or the fastest."""
    noted = out / "number_format.json"
    if begun and noted.is_file():
        return StepFormat(**read_json(noted))
    found, seconds = step_format(config.precision, model, data.usual_batch(config.batch_size))
    if seconds:
        times = ", ".join(f"{name} {spent:.3f} s" for name, spent in seconds.items())
        say(f"  number format: {found} (a step takes: {times})")
    make_folder(out)
    write_json(noted, asdict(found))
    return found


def arguments_of(
    config: TrainConfig, out: str | Path, best_by: str, bf16: bool
) -> TrainingArguments:
    """The Trainer's arguments for our settings. best_by: the metric that early stopping watches."""
    cuda = torch.cuda.is_available()
    steps, keep_best = config.evaluate_every, config.patience is not None
    save_steps = steps if keep_best else config.save_every
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        max_grad_norm=config.clip,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=not cuda,
        activation_checkpointing=config.activation_checkpointing,
        eval_strategy="steps" if steps else "epoch",
        eval_steps=steps,
        save_strategy="steps" if save_steps else "epoch",
        save_steps=save_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        metric_for_best_model=best_by,
        greater_is_better=best_by != "eval_loss",
        logging_steps=10,
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=config.seed,
        data_seed=config.seed,
        restore_callback_states_from_checkpoint=True,  # how long early stopping was patient
    )
    # Trainer would copy the model to every GPU and run the copies in threads, which share one pass.
    # (Read first: it counts the devices when it is asked.)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def tensorboard(folder: str | Path) -> TensorBoardCallback:
    """Logs for TensorBoard in a folder; UserError where it is not installed."""
    try:
        callback = TensorBoardCallback()
    except RuntimeError:
        raise UserError(
            "train.tensorboard: true needs TensorBoard: pip install 'turnout[tensorboard]'"
        ) from None
    callback.logging_dir = str(folder)
    return callback


def set_dropout(model: PreTrainedModel, rate: float | None, attention: float | None) -> None:
    """Give every dropout of a host one rate, and those inside of attention one of their own.

    rate: None keeps the host's. attention: None = the same. Modules and the rates that a host's
    code reads are set.
    """
    inside = {
        view.module.get_submodule(leaf.path.rpartition(".")[0])
        for view in blocks_of(model, find_family(model))
        for leaf, _ in view.leaves("attention")
        if leaf.role in ("query", "fused")
    }
    for module in model.modules():
        wanted = attention if module in inside and attention is not None else rate
        if wanted is None:
            continue
        for child in module.children():
            if isinstance(child, nn.Dropout):
                child.p = wanted
        for name in RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, wanted)


def freeze(model: PreTrainedModel, what: str) -> None:
    """Freeze nothing, the embeddings, all up to the head (``blocks``), the host of a routed model
    (only routers and their units train), or its ``units`` too (only routers). Noise learns with
    routers."""
    model.requires_grad_(True)
    if what in ("embeddings", "blocks"):
        model.get_input_embeddings().requires_grad_(False)
        embeddings = getattr(model.base_model, "embeddings", None)
        if isinstance(embeddings, nn.Module):
            embeddings.requires_grad_(False)
    if what == "blocks":
        for view in blocks_of(model, find_family(model)):
            view.module.requires_grad_(False)
    elif what in ("host", "units") and routing_of(model) is not None:
        learns = "turnout." if what == "host" else ("turnout.routers.", "turnout.noise.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(learns))
