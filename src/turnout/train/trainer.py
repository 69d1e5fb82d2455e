"""transformers.Trainer with routed objectives: the thinnest subclass that does it."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer

from turnout import objectives
from turnout.cost import trace_share
from turnout.errors import UserError
from turnout.execute.batches import uncached
from turnout.execute.routing import Routing
from turnout.hosts.tasks_model import TasksModel
from turnout.train.answers import paired
from turnout.train.config import TrainConfig
from turnout.train.noise import noise_logs, second_pass
from turnout.train.order import LengthOrder, grouped_steps
from turnout.train.saving import load_weights
from turnout.train.word_losses import forward_states, in_pieces, word_losses
from turnout.units.copies import CopyBank


def routing_of(model: nn.Module) -> Routing | None:
    """The routing of a model, or None when it is not routed."""
    return getattr(model, "turnout", None)


class RoutedTrainer(Trainer):
    """Adds the objectives of routes to the host's own loss, and reports the share of work.

    A batch may carry ``teacher_logits`` (the dense host's answers, computed once). Works for an
    unrouted model too: then only task and distillation count. Resumes exactly: schedules follow
    ``state.global_step``, random routers draw from torch's generator, which Trainer restores.
    """

    def __init__(
        self,
        *args: Any,
        train_config: TrainConfig,
        weights: objectives.ObjectivesConfig,
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.train_config, self.weights = train_config, weights
        self.teacher = None if teacher is None else teacher.to(self.args.device)  # type: ignore[arg-type]
        routing, rows = routing_of(self.accelerator.unwrap_model(self.model)), self.train_dataset
        if routing is not None and isinstance(rows, datasets.Dataset):
            for router in routing.all_routers():
                router.study(rows)
        # Then Trainer counts the labels of all micro-batches of a step: see compute_loss.
        self.model_accepts_loss_kwargs = True
        self.task_score: Callable[[], float] | None = None
        self._by_pieces = True
        self._meters: dict[str, list[Tensor]] = defaultdict(list)
        self.tokens = self._tokens = 0
        self._since = time.perf_counter()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted sum of the objectives; the parts are logged one by one.

        Each is a mean over the micro-batch, which counts by its part of the step's labels: so the
        objectives that are means over labels (task, distill, exits) have in a step of several
        micro-batches the loss and gradient of one large batch. Those that are not linear in the
        batch (budget, balance, score_function) are averaged over the micro-batches.
        """
        inputs = dict(inputs)
        teacher_logits = inputs.pop("teacher_logits", None)
        hidden = self.weights.hidden > 0 and self.teacher is not None and model.training
        if (routing := routing_of(self.accelerator.unwrap_model(model))) is not None:
            for router in routing.all_routers():  # before the pass, which may be run twice
                router.done = self.state.global_step / max(1, self.state.max_steps)
        host: Any = self.accelerator.unwrap_model(model)
        given = {**inputs, **uncached(host), **({"output_hidden_states": True} if hidden else {})}
        # kept answers, and a second pass to compare with, are whole
        kept = teacher_logits is not None or (model.training and self.weights.consistency > 0)
        outputs, words = (None, None) if kept else self._words(model, host, given)
        if outputs is None:
            outputs = model(**given)
        if not model.training:
            loss = outputs["loss"] if words is None else words["task"]
            return (loss, outputs) if return_outputs else loss
        asks = teacher_logits is None and self.teacher is not None and self.weights.distill
        if asks and words is None:
            with torch.no_grad():
                asked = {**inputs, **uncached(self.teacher)}
                teacher_logits = self.teacher(**asked)["logits"]  # type: ignore[misc]
        parts = self._parts(model, inputs, outputs, teacher_logits, words)
        if hidden:
            parts["hidden"] = self._hidden(inputs, outputs)
        if self.weights.consistency and routing is not None:
            loss, parts["consistency"] = second_pass(model, host, given, outputs)
            parts["task"] = 0.5 * (parts["task"] + loss)
        weights = {name: getattr(self.weights, name) for name in parts}
        if "kl" in weights:
            weights["kl"] *= self.risen(self.weights.kl_anneal)
        parts = {name: value for name, value in parts.items() if name == "task" or weights[name]}
        loss = torch.stack([weights[name] * value.float() for name, value in parts.items()]).sum()
        for name, value in parts.items():
            self._meters[f"loss_{name}"].append(value.detach())
        first = inputs.get("attention_mask", next(iter(inputs.values())))
        self._tokens += first.numel()
        self.tokens += first.numel()
        if num_items_in_batch is not None:
            here = self._get_num_items_in_batch([inputs], loss.device)
            loss = loss * (here / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _words(
        self, model: nn.Module, host: PreTrainedModel, given: dict[str, Any]
    ) -> tuple[Any, dict[str, Tensor] | None]:
        """A pass of a causal language model whose losses are taken in pieces (see word_losses), and
        these losses; None where that cannot be done."""
        if not self._by_pieces or "labels" not in given or not in_pieces(host):
            return None, None
        with self.accelerator.autocast():  # as the model's own head has it
            outputs, states_BTD, self._by_pieces = forward_states(model, host, given)
        if not self._by_pieces:
            return None, None
        teacher = self.teacher if model.training and self.weights.distill else None
        taught_BTD = None
        if teacher is not None:
            with torch.no_grad():
                _, taught_BTD, self._by_pieces = forward_states(teacher, teacher, given)
            if not self._by_pieces:
                return None, None
        with self.accelerator.autocast():
            losses = word_losses(host, states_BTD, given["labels"], teacher, taught_BTD)
        return outputs, losses

    def _parts(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        outputs: Any,
        teacher: Tensor | None,
        words: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The objectives of a pass. words: those on answers, where they are known already; then the
        outputs have logits of a last token alone, for routers that do not look at them."""
        weights = self.weights
        labels = inputs.get("labels")
        logits = outputs["logits"]
        if labels is not None:
            host = self.accelerator.unwrap_model(model)
            teacher = None if teacher is None else paired(host, teacher, labels)[0]
            logits, labels = paired(host, logits, labels)
        parts = {"task": outputs["loss"]} if words is None else words
        keep = labels != -100 if labels is not None and labels.ndim == 2 else None
        if teacher is not None and weights.distill:
            host: Any = self.accelerator.unwrap_model(model)
            parts["distill"] = (
                host.taught(logits, teacher, labels)
                if isinstance(host, TasksModel)
                else objectives.distill(logits, teacher, keep)
            )
        routing = routing_of(self.accelerator.unwrap_model(model))
        if routing is None:
            return parts
        flow = routing.current_flow()
        if noise := routing.all_noise():
            divergences = [each.kl(flow) for each in noise]
            parts["kl"] = objectives.kl(divergences, weights.free_bits)
        if not flow.trace:  # noise alone
            return parts
        share = trace_share(flow.trace)
        if any(router.learns_budget for router in routing.all_routers()):
            parts["budget"] = objectives.budget(share, self.target_budget())
        if weights.balance and any(r.weight_BTU.requires_grad for r in flow.trace.values()):
            parts["balance"] = objectives.balance(flow.trace)
        self._meters["share"].append(share.detach())
        for router in routing.all_routers():
            for name, value in router.losses(flow, logits, labels, teacher).items():
                parts[name] = parts[name] + value if name in parts else value
        return parts

    def _hidden(self, inputs: dict[str, Any], outputs: Any) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad():
            asked = {**inputs, **uncached(self.teacher)}
            taught = self.teacher(**asked, output_hidden_states=True)
        mask = inputs.get("attention_mask")
        keep = None if mask is None else mask.bool()
        return objectives.distill_hidden(outputs.hidden_states[-1], taught.hidden_states[-1], keep)

    def target_budget(self) -> float:
        """The work budget at this step: from 1 down to its goal over the first part of training."""
        return 1.0 + (self.train_config.budget - 1.0) * self.risen(self.train_config.anneal)

    def risen(self, part: float) -> float:
        """How far something has come that goes from 0 to 1 over the first part of training."""
        return min(1.0, self.state.global_step / max(1.0, self.state.max_steps * part))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate of its own for the routers."""
        if self.optimizer is not None:
            return self.optimizer
        target: Any = model if model is not None else self.model
        config, decay = self.train_config, set(self.get_decay_parameter_names(target))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        banks = [bank for bank in target.modules() if isinstance(bank, CopyBank)]
        copied = {id(parameter) for bank in banks for parameter in bank.parameters()}
        own = _own_rates(target)
        for name, parameter in target.named_parameters():
            if not parameter.requires_grad:
                continue
            rate, decays = self.rate_of(name), name in decay
            if "turnout." in name and id(parameter) not in copied:
                rate, decays = own.get(id(parameter), config.router_learning_rate), False
            groups[(rate, decays)].append(parameter)
        settings = [
            {
                "params": parameters,
                "lr": rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (rate, decays), parameters in groups.items()
        ]
        cls, extra = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = cls(settings, **extra)
        return self.optimizer

    def rate_of(self, name: str) -> float:
        """The learning rate of a parameter of the host."""
        return self.train_config.learning_rate

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, the share of work and tokens per second."""
        if "loss" in logs and self._meters:
            for name, values in self._meters.items():
                logs[name] = round(float(torch.stack(values).mean()), 5)
            now = time.perf_counter()
            logs |= noise_logs(routing_of(self.accelerator.unwrap_model(self.model)))
            logs["tokens_per_second"] = round(self._tokens / (now - self._since), 1)
            self._meters.clear()
            self._tokens, self._since = 0, now
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Add the task's own score to the validation loss, at the budget that is trained for.

        Takes no random number from training: how often is validated does not change the weights.
        """
        with torch.random.fork_rng(devices=[]):
            output: Any = super().evaluation_loop(*args, **kwargs)
            output.metrics.update(self._scored())
        return output

    def _scored(self) -> dict[str, float]:
        """The task's own score, where it has one."""
        if self.task_score is None:
            return {}
        routing = routing_of(self.accelerator.unwrap_model(self.model))
        with routing.at(self.train_config.budget) if routing else nullcontext():
            return {"eval_score": self.task_score()}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        # images, sound, and data sets of one's own have no lengths to group by
        if "input_ids" not in getattr(rows, "column_names", ()):
            return super()._get_train_sampler(train_dataset)  # type: ignore[return-value]
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = [len(ids) for ids in rows["input_ids"]]
        grouped = grouped_steps(self.train_config, rows)
        seed = self.args.data_seed or self.args.seed
        return LengthOrder(lengths, step, seed, grouped)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer does; what a full disk leaves half-written is taken away again."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"cannot write {folder}: {error}; is the disk full?") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Restore exactly, through the same reader as turnout.load (key conversions included)."""
        target: Any = model or self.model
        load_weights(target, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        model: Any = self.model
        if self.state.best_model_checkpoint:
            load_weights(model, self.state.best_model_checkpoint)


def _own_rates(model: nn.Module) -> dict[int, float]:
    """Learning rates that routers ask for, by the id of a parameter."""
    routing = routing_of(model)
    return {
        id(parameter): router.config.learning_rate
        for router in (routing.all_routers() if routing is not None else ())
        if router.config.learning_rate is not None
        for parameter in router.parameters()
    }
