"""The trainer of a model of several tasks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import Sampler

from turnout.double.config import TasksTrainConfig
from turnout.double.mixing import BatchOrder
from turnout.hosts.tasks_model import TasksModel
from turnout.train.trainer import RoutedTrainer


class TasksTrainer(RoutedTrainer):
    """Steps on batches of one task each; their losses are weighed, and logged task by task."""

    def __init__(self, *args: Any, tasks_config: TasksTrainConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks_config = tasks_config
        # batches of a step are of different tasks: each counts by its weight, not by its labels
        self.model_accepts_loss_kwargs = False

    def _parts(
        self, model: nn.Module, inputs: dict[str, Any], outputs: Any, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        parts = super()._parts(model, inputs, outputs, teacher)
        host: TasksModel = self.accelerator.unwrap_model(model)  # type: ignore[assignment]
        task = int(inputs["task_ids"][0])
        self._meters[f"loss_task_{host.tasks[task]}"].append(parts["task"].detach())
        weighting: Any = host.weighting
        return {**parts, "task": weighting(parts["task"], task)}

    def rate_of(self, name: str) -> float:
        """Heads learn faster than the backbone, which knows much already."""
        config = self.tasks_config
        own = name.startswith(("heads.", "weighting."))
        return config.head_learning_rate if own else super().rate_of(name)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return BatchOrder(self.train_dataset if train_dataset is None else train_dataset)

    def num_examples(self, dataloader: Any) -> int:
        """Batches: what a step takes."""
        return len(dataloader.dataset)


def held(model: TasksModel, config: TasksTrainConfig) -> None:
    """Freeze what a config does not let learn."""
    model.requires_grad_(True)
    if config.backbone == "frozen":
        model.backbone.requires_grad_(False)
    embeddings: Any = model.get_input_embeddings()
    if config.backbone == "embeddings" and embeddings is not None:
        embeddings.requires_grad_(False)
        more = getattr(model.backbone, "embeddings", None)
        if isinstance(more, nn.Module):
            more.requires_grad_(False)
    for block in _last_blocks(model, config.blocks):
        block.requires_grad_(True)


def _last_blocks(model: TasksModel, count: int) -> list[nn.Module]:
    from turnout.hosts.attach import blocks_of, find_family

    views = blocks_of(model, find_family(model)) if count else []
    return [view.module for view in views if view.layer >= view.depth - count]


def trained_parameters(model: nn.Module) -> int:
    """How many numbers learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)



