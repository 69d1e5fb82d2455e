"""What a model of tasks may have besides backbone and heads, made from its config.

Each is a field of the config (``turnout_bridge``, ``turnout_cases``, ``turnout_inner``,
``turnout_prompt``), so that a saved model is built again with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoConfig, PreTrainedModel

from turnout.hosts.bridge import Bridge, bridge_of
from turnout.hosts.prompts import Prompt, check_prefix
from turnout.units.task_heads import HeadConfig, InnerHeads

if TYPE_CHECKING:
    from turnout.hosts.tasks_model import TasksModel


def add_bridge(model: TasksModel, language_model: PreTrainedModel, layers: int | None) -> None:
    """Put the first blocks of a language model between backbone and heads; None = all."""
    width = model.config.get_text_config().hidden_size
    model.bridge, config = bridge_of(width, language_model, layers)
    model.bridge.to(next(model.backbone.parameters()).device)
    model.config.turnout_bridge = config.to_dict()


def empty_bridge(config: Any) -> Bridge | None:
    """The empty bridge that a config asks for."""
    asked = getattr(config, "turnout_bridge", None)
    if asked is None:
        return None
    made = AutoConfig.for_model(**asked)
    return Bridge(config.get_text_config().hidden_size, made)


def add_cases(model: TasksModel, count: int) -> None:
    """A vector for each class of ``case_ids``, added to the embeddings of words; 0 at first."""
    model.config.turnout_cases = count
    made = fresh_cases(model.config)
    assert made is not None
    nn.init.zeros_(made.weight)
    model.case = made.to(next(model.backbone.parameters()).device)


def fresh_cases(config: Any) -> nn.Embedding | None:
    """The vectors of ``case_ids`` that a config asks for."""
    count = getattr(config, "turnout_cases", None)
    text = config.get_text_config()
    width = getattr(text, "embedding_size", None) or text.hidden_size  # of words
    return None if count is None else nn.Embedding(count, width)


def add_inner(model: TasksModel, layers: int) -> None:
    """Heads of the tasks at the first ``layers`` blocks, for training."""
    model.config.turnout_inner = layers
    made = fresh_inner(model.config)
    assert made is not None
    model.inner = made.to(next(model.backbone.parameters()).device)


def fresh_inner(config: Any) -> InnerHeads | None:
    """The heads at inner blocks that a config asks for."""
    layers = getattr(config, "turnout_inner", None)
    if layers is None:
        return None
    heads = {
        fields["name"]: HeadConfig(kind=fields["kind"], width=fields["width"])
        for fields in config.turnout_heads
    }
    return InnerHeads(heads, config.get_text_config().hidden_size, layers)


def add_prompt(model: TasksModel, kind: str, tokens: int) -> None:
    """What is learned before every text. kind: ``prompt``, ``p-tuning`` or ``prefix``. Raises
    UserError where a host cannot take a prefix."""
    if kind == "prefix":
        check_prefix(model.backbone)
    model.config.turnout_prompt = {"kind": kind, "tokens": tokens}
    made = fresh_prompt(model.config)
    assert made is not None
    model.prompt = made.to(next(model.backbone.parameters()).device)


def fresh_prompt(config: Any) -> Prompt | None:
    """The prompt that a config asks for."""
    asked = getattr(config, "turnout_prompt", None)
    return None if asked is None else Prompt(asked["kind"], asked["tokens"], config)
