"""Train one model with the Trainer: what is frozen, which callbacks, where it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from turnout.execute.batches import Collate
from turnout.execute.pool import predict_bulk
from turnout.objectives import ObjectivesConfig
from turnout.tasks.base import Task
from turnout.train.callbacks import CollapseCallback, ProgressLine
from turnout.train.config import TrainConfig
from turnout.train.precision import resolve
from turnout.train.trainer import RoutedTrainer, last_checkpoint, routing_of


def fit(
    model: PreTrainedModel,
    task: Task[Any],
    train: datasets.Dataset,
    validation: datasets.Dataset,
    tokenizer: Any,
    config: TrainConfig,
    weights: ObjectivesConfig,
    out: str | Path,
    *,
    teacher: PreTrainedModel | None = None,
    teacher_logits: list[np.ndarray] | None = None,
    references: Any = None,
    epochs: float | None = None,
    title: str = "train",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> RoutedTrainer:
    """Train a model in place on encoded data and return its trainer.

    teacher_logits: the dense host's answers for ``train``, in its order. A checkpoint in ``out``
    is continued exactly where it stopped.
    """
    set_dropout(model, config.dropout)
    freeze(model, config.freeze)
    if teacher_logits is not None:
        columns = [row.astype(np.float32).tolist() for row in teacher_logits]
        train = train.add_column("teacher_logits", columns)  # type: ignore[call-arg]
    collate = with_teacher(task.collator(tokenizer))
    precision = resolve(config.precision, "cuda" if torch.cuda.is_available() else "cpu")
    steps = config.evaluate_every
    watch = "steps" if steps else "no" if config.patience is None else "epoch"
    keep_best = config.patience is not None
    save_steps = steps if keep_best else config.save_every
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=config.epochs if epochs is None else epochs,
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
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=config.activation_checkpointing,
        eval_strategy=watch,
        eval_steps=steps,
        save_strategy="steps" if save_steps else "epoch",
        save_steps=save_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        metric_for_best_model="eval_loss" if references is None else "eval_score",
        greater_is_better=references is not None,
        logging_steps=10,
        logging_first_step=True,
        report_to=["tensorboard"] if config.tensorboard else [],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=config.seed,
        data_seed=config.seed,
    )
    trainer = RoutedTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        processing_class=tokenizer,
        train_config=config,
        weights=weights,
        teacher=teacher,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLine(title, shown=progress))
    if routing_of(model) is not None:
        trainer.add_callback(CollapseCallback(say))
    if references is not None:
        trainer.task_score = lambda: score_of(model, task, validation, tokenizer, references)
    if config.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    model.eval()
    return trainer


def score_of(
    model: PreTrainedModel, task: Task[Any], rows: datasets.Dataset, tokenizer: Any, references: Any
) -> float:
    """The task's headline on encoded rows, at the model's current budget."""
    result = predict_bulk(model, listed(rows), task.collator(tokenizer))
    found = predictions_of(task, rows, result.logits)
    return task.score(task.counts(found, references).sum(0))


def listed(rows: datasets.Dataset) -> list[dict[str, Any]]:
    """Encoded rows out of their table, which is slow to be asked row by row."""
    return [dict(row) for row in rows]  # type: ignore[call-overload]


def predictions_of(task: Task[Any], rows: datasets.Dataset, logits: list[np.ndarray]) -> Any:
    """A task's predictions from the logits of encoded rows."""
    if logits and logits[0].ndim == 1:
        return task.predictions(np.stack(logits))
    labels = rows["labels"]
    return [
        task.predictions(each[None], np.asarray(row)[None, : len(each)])[0]
        for each, row in zip(logits, labels, strict=True)
    ]


def with_teacher(collate: Collate) -> Collate:
    """A collator that also pads ``teacher_logits`` where the rows carry them."""

    def joined(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        if "teacher_logits" in rows[0]:
            logits = [torch.tensor(row["teacher_logits"]) for row in rows]
            batch["teacher_logits"] = nn.utils.rnn.pad_sequence(logits, batch_first=True)
        return batch

    return joined


def set_dropout(model: nn.Module, rate: float | None) -> None:
    """Give every dropout of a host one rate: modules, and the rates that attention code reads."""
    if rate is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("attention_dropout", "dropout_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def freeze(model: PreTrainedModel, what: str) -> None:
    """Freeze nothing, the embeddings, or the host of a routed model (only routers train)."""
    model.requires_grad_(True)
    if what == "embeddings":
        model.get_input_embeddings().requires_grad_(False)
        embeddings = getattr(model.base_model, "embeddings", None)
        if isinstance(embeddings, nn.Module):
            embeddings.requires_grad_(False)
    elif what == "host" and routing_of(model) is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("turnout."))
