"""What learns in a model of several tasks, and how fast: one word in the recipe."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn
from transformers import TrainerCallback

from turnout.double.config import FROZEN, PROMPTS, TasksTrainConfig
from turnout.errors import UserError
from turnout.hosts.additions import add_inner, add_prompt
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.tasks_model import TasksModel

LORA = "turnout_lora"


def begin(model: TasksModel, config: TasksTrainConfig) -> None:
    """Add what a strategy trains and the backbone lacks; before routers are installed."""
    if config.strategy in PROMPTS:
        add_prompt(model, config.strategy, config.prompt_tokens)
    if config.strategy == "discriminative" and config.inner > 0:
        depth = max(view.depth for view in blocks_of(model, find_family(model)))
        if depth > 1:
            add_inner(model, depth - 1)
    if config.strategy == "lora":
        made = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear")
        LoraModel(model.backbone, made, LORA)


def end(model: TasksModel, config: TasksTrainConfig) -> None:
    """Merge or drop what only the training needed; the routers must be off."""
    model.inner, model.config.turnout_inner = None, None
    if config.strategy != "lora":
        return
    layers = [
        (name, module)
        for name, module in model.backbone.named_modules()
        if hasattr(module, "merge") and hasattr(module, "base_layer")
    ]
    for name, layer in layers:
        merging: Any = layer
        merging.merge(adapter_names=[LORA])
        above, _, last = name.rpartition(".")
        setattr(model.backbone.get_submodule(above), last, merging.get_base_layer())


def hold(model: TasksModel, config: TasksTrainConfig, bridge_frozen: bool = True) -> None:
    """Freeze what a strategy does not let learn, and the blocks of a bridge where asked. Raises
    UserError where ``named`` names nothing."""
    model.requires_grad_(True)
    strategy = config.strategy
    if strategy in FROZEN:
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_("lora_" in name)
    if strategy == "partial":
        _hold_but_some(model, config)
    if strategy == "head" and hasattr(model, "turnout"):
        model.turnout.requires_grad_(False)
    if config.freeze_embeddings:
        embeddings: list[Any] = [model.get_input_embeddings()]
        embeddings.append(getattr(model.backbone, "embeddings", None))
        for module in embeddings:
            if isinstance(module, nn.Module):
                module.requires_grad_(False)
    if model.bridge is not None and bridge_frozen:
        model.bridge.blocks.requires_grad_(False)
    for head in model.heads.values():
        noise: Any = head.log_variance
        noise.requires_grad_(config.weighting == "uncertainty")


def _hold_but_some(model: TasksModel, config: TasksTrainConfig) -> None:
    last = {
        id(parameter)
        for view in blocks_of(model, find_family(model))
        if view.layer >= view.depth - config.blocks
        for parameter in view.module.parameters()
    }
    found = False
    for name, parameter in model.backbone.named_parameters():
        learns = name.startswith(config.named) if config.named else id(parameter) in last
        parameter.requires_grad_(learns)
        found = found or learns
    if not found:
        first = next(name for name, _ in model.backbone.named_parameters())
        raise UserError(
            f"train.named: nothing in {type(model.backbone).__name__} begins with "
            f"{' or '.join(config.named)}; its parameters have names such as {first}"
        )


def scales(model: TasksModel, config: TasksTrainConfig) -> dict[int, float]:
    """By the id of a parameter of the backbone, its learning rate as a part of that of the last
    block; empty where all learn alike."""
    if config.strategy != "discriminative":
        return {}
    views = blocks_of(model, find_family(model))
    depth = max(view.depth for view in views)
    found = {id(parameter): config.decay**depth for parameter in model.backbone.parameters()}
    for view in views:
        scale = config.decay ** (view.depth - 1 - view.layer)
        found |= {id(parameter): scale for parameter in view.module.parameters()}
    return found


class Unfreezing(TrainerCallback):
    """Lets blocks learn from the top, one after the other, over the first ``share`` of a training;
    what is below the blocks comes last."""

    def __init__(self, model: TasksModel, share: float) -> None:
        self.views = blocks_of(model, find_family(model))
        self.backbone, self.share = model.backbone, share
        self.may = {id(p) for p in model.backbone.parameters() if p.requires_grad}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before each step: what has been let in by now."""
        done = min(1.0, state.global_step / max(1.0, self.share * state.max_steps))
        depth = max(view.depth for view in self.views)
        lowest = depth - 1 - int(done * depth)  # the last block learns from the first step
        learns = {
            id(parameter)
            for view in self.views
            if view.layer >= lowest
            for parameter in view.module.parameters()
        }
        for parameter in self.backbone.parameters():
            let_in = done >= 1.0 or id(parameter) in learns
            parameter.requires_grad_(id(parameter) in self.may and let_in)
