"""The trainer of a model of several tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from turnout.double.config import TasksTrainConfig
from turnout.double.inner import InnerStates
from turnout.double.mixing import BatchOrder
from turnout.double.strategies import scales
from turnout.double.weighting import weighed
from turnout.hosts.tasks_model import TasksModel
from turnout.train.trainer import RoutedTrainer


class EndUnjudged(TrainerCallback):
    """The end of a training is not validated twice: who trains judges what comes of it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of trainings that are validated every so many steps."""
        self._leave(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of those that are validated after each epoch."""
        self._leave(args, state, control)

    def _leave(self, args: Any, state: Any, control: Any) -> None:
        if state.global_step >= state.max_steps and not args.load_best_model_at_end:
            control.should_evaluate = False


class TasksTrainer(RoutedTrainer):
    """Steps on batches of one task each; their losses are weighed, and logged task by task.

    tasks_config: how fast heads learn, and how much each task's loss counts.
    """

    def __init__(self, *args: Any, tasks_config: TasksTrainConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks_config = tasks_config
        # batches of a step are of different tasks: each counts by its weight, not by its labels
        self.model_accepts_loss_kwargs = False
        self.args.per_device_eval_batch_size = 1  # an item is a batch
        host: Any = self.model
        self._scales = scales(host, tasks_config)
        self.inner: InnerStates | None = None
        self.watch(host)

    def watch(self, host: TasksModel | None) -> None:
        """Look at the inner states of a model that has heads there, and at those of no other."""
        if self.inner is not None:
            self.inner.close()
        self.inner = None if host is None or host.inner is None else InnerStates(host)

    def _parts(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        outputs: Any,
        teacher: Tensor | None,
        words: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        parts = super()._parts(model, inputs, outputs, teacher, words)
        host: Any = self.accelerator.unwrap_model(model)
        name = host.tasks[int(inputs["task_ids"][0])]
        self._meters[f"loss_{name}"].append(parts["task"].detach())
        loss = parts["task"]
        if self.inner is not None:
            found = self.inner.loss(host, name, inputs.get("attention_mask"), inputs["labels"])
            if found is not None:
                self._meters[f"loss_{name}_inner"].append(found.detach())
                loss = loss + self.tasks_config.inner * found
        own = weighed(loss, name, host.heads[name], self.tasks_config)
        return {**parts, "task": own}

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The tasks' scores alone: a mean of losses of unlike kinds says nothing, and takes a pass
        over all rows."""
        with torch.random.fork_rng(devices=[]):
            found = self._scored()
        return EvalLoopOutput(None, None, found, self.num_examples(dataloader))  # type: ignore[arg-type]

    def rate_of(self, name: str) -> float:
        """Heads begin from nothing, the backbone knows much already, its first blocks most."""
        if name.startswith(("heads.", "inner.")):
            return self.tasks_config.head_learning_rate
        model: Any = self.model
        return self._scales.get(id(model.get_parameter(name)), 1.0) * super().rate_of(name)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        batches: Any = self.train_dataset if train_dataset is None else train_dataset
        return BatchOrder(batches)
