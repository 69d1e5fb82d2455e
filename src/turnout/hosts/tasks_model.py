"""One backbone, a head a task: y_t = head_t(router(backbone(x))).

A PreTrainedModel like any other: it is installed on, trained, saved and loaded as one. Its config
is that of the backbone with the heads beside it (``turnout_heads``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PromptEncoder, PromptEncoderConfig
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from turnout.errors import UserError
from turnout.hosts.bridge import Bridge, bridge_of
from turnout.objectives.distill import distill
from turnout.units.output import Reader

HeadKind = Literal["class", "labels", "number", "tag", "span", "vector"]
PER_TOKEN: frozenset[HeadKind] = frozenset({"tag", "span"})
IGNORED = -100
BEGIN, END, BOTH = 1, 2, 3  # marks of an answer's first and last token


class HeadConfig(BaseModel):
    """kind: ``class`` one label a text, ``labels`` any number of them, ``number`` regression,
    ``tag`` a label a token, ``span`` where an answer begins and ends, ``vector`` an embedding of
    length 1. width: classes, numbers, or the length of the vector; 2 for spans."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: HeadKind
    width: int = Field(gt=0)

    @property
    def per_token(self) -> bool:
        """Does it read every token, or the text as a whole."""
        return self.kind in PER_TOKEN


class Head(nn.Module):
    """A linear layer that reads rows (B, T, D), T = 1 for a whole text. log_variance: of the task's
    noise, where a training learns how much its loss should count."""

    def __init__(self, config: HeadConfig, width: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, config.width)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, rows_BTD: Tensor) -> Tensor:
        """Logits, (B, T, C) for tokens, (B, C) for texts."""
        logits = self.linear(self.dropout(rows_BTD))
        if self.config.per_token:
            return logits
        logits = logits[:, 0]
        return F.normalize(logits, dim=-1) if self.config.kind == "vector" else logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch. labels: (B,) classes; (B, C) of 0 and 1, or numbers; (B, T) tags,
        or marks of an answer (``span_loss``); (B,) of vectors: those with one number belong
        together, and all others of the batch are wrong (``in_batch``)."""
        logits, kind = logits.float(), self.config.kind
        if kind == "class":
            return F.cross_entropy(logits, labels, ignore_index=IGNORED)
        if kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        if kind == "number":
            return F.mse_loss(logits, labels.float().view_as(logits))
        if kind == "tag":
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        if kind == "span":
            return span_loss(logits, labels)
        return in_batch(logits, labels)

    def taught(self, logits: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """How far answers are from those of a teacher with the same head, mean of a batch."""
        logits, teacher, kind = logits.float(), teacher.float(), self.config.kind
        if kind == "class":
            return distill(logits, teacher)
        if kind == "labels":
            return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid())
        if kind in ("number", "vector"):
            return F.mse_loss(logits, teacher)
        keep = None if labels is None else labels != IGNORED
        if kind == "tag":
            return distill(logits, teacher, keep)
        outside = torch.zeros_like(logits[..., 0], dtype=torch.bool) if keep is None else ~keep
        ends = [
            distill(*(each[..., end].masked_fill(outside, -1e4) for each in (logits, teacher)))
            for end in (0, 1)
        ]
        return torch.stack(ends).mean()


def span_loss(logits_BT2: Tensor, marks_BT: Tensor) -> Tensor:
    """Cross-entropy of first and last token over those of the context. marks: IGNORED outside of
    it, BEGIN, END or BOTH at the answer's ends; rows without an answer count nothing."""
    losses = []
    for logits_BT, mark in zip(logits_BT2.unbind(-1), (BEGIN, END), strict=True):
        logits_BT = logits_BT.masked_fill(marks_BT == IGNORED, -torch.inf)
        here_BT = (marks_BT == mark) | (marks_BT == BOTH)
        place_B = torch.where(here_BT.any(1), here_BT.int().argmax(1), IGNORED)
        each_B = F.cross_entropy(logits_BT, place_B, ignore_index=IGNORED, reduction="sum")
        losses.append(each_B / (place_B != IGNORED).sum().clamp_min(1))
    return torch.stack(losses).mean()


def in_batch(vector_BD: Tensor, group_B: Tensor, temperature: float = 0.05) -> Tensor:
    """Contrastive loss of vectors of length 1: each should be nearer to those of its group than to
    any other of the batch (multiple negatives, Henderson et al. 2017, arXiv 1705.00652, both ways;
    the temperature is the inverse of their scale)."""
    alone_BB = torch.eye(len(vector_BD), dtype=torch.bool, device=vector_BD.device)
    close_BB = ((vector_BD @ vector_BD.t()) / temperature).masked_fill(alone_BB, -torch.inf)
    same_BB = (group_B[:, None] == group_B) & ~alone_BB
    some_B = same_BB.any(1)
    log_BB = close_BB.log_softmax(-1).masked_fill(~same_BB, 0.0)
    each_B = -log_BB.sum(1) / same_BB.sum(1).clamp_min(1)
    return (each_B * some_B).sum() / some_B.sum().clamp_min(1)


@dataclass
class TasksOutput(ModelOutput):
    """loss, where there are labels; logits: of one task, or by task where several are asked for,
    each in the order of the texts that ask for it."""

    loss: Tensor | None = None
    logits: Any = None


class TasksModel(PreTrainedModel):
    """task: what passes ask for that do not say; None = the only one there is."""

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: Any, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.backbone = (
            AutoModel.from_config(config, **poolerless(config)) if backbone is None else backbone
        )
        self.case = _cases(config)
        self.prompt = _prompt(config)
        self.bridge = _bridge(config)
        self.reader = Reader()
        self.heads = nn.ModuleDict()
        self.task: str | None = None
        for fields in config.turnout_heads:  # a list: keys of a config are sorted when it is saved
            self._add(fields["name"], HeadConfig(kind=fields["kind"], width=fields["width"]))
        self.post_init()

    def _add(self, name: str, config: HeadConfig) -> None:
        width = self.config.get_text_config().hidden_size
        dropout = float(getattr(self.config, "hidden_dropout_prob", 0.0) or 0.0)
        self.heads[name] = Head(config, width, dropout)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; ``task_ids`` are places in this list."""
        return list(self.heads)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        task_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        labels: Tensor | None = None,
        case_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> TasksOutput:
        """task_ids: the task of each text, (B,), as a place in ``tasks``. tasks: every text asks
        for all of these. Neither = all ask for ``task``. labels: of one task. case_ids: how each
        token's word is written, (B, T) (see tasks/casing.py). Raises UserError where nothing is
        asked for, for an unknown task, and for labels of several."""
        asked = self._asked(task_ids, tasks)
        if labels is not None and len(asked) > 1:
            raise UserError("labels of several tasks in one pass: a batch is of one task")
        kwargs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        state_BTD = self._states(kwargs, case_ids)
        if self.bridge is not None:
            state_BTD = self.bridge(state_BTD, attention_mask)
        answers = dict(self._answers(state_BTD, attention_mask, asked))
        if len(asked) > 1 or tasks is not None:
            return TasksOutput(logits=answers)
        ((name, logits),) = answers.items()
        head: Any = self.heads[name]
        return TasksOutput(None if labels is None else head.loss(logits, labels), logits)

    def _states(self, inputs: dict[str, Any], case_ids: Tensor | None) -> Tensor:
        """What the backbone makes of the texts, (B, T, D), with what is added to their words and
        the prompt before them, if any."""
        cased = self.case is not None and case_ids is not None
        if self.prompt is None and not cased:
            return self.backbone(**inputs)[0]
        ids = inputs.pop("input_ids")
        embedded_BTD = self.get_input_embeddings()(ids)
        if cased:
            embedded_BTD = embedded_BTD + self.case(case_ids).to(embedded_BTD.dtype)  # type: ignore[misc]
        if self.prompt is None:
            return self.backbone(inputs_embeds=embedded_BTD, **inputs)[0]
        mask = inputs.pop("attention_mask")
        inputs.pop("token_type_ids", None)  # of the text alone
        count, batch = self.config.turnout_prompt["tokens"], len(ids)
        places = torch.arange(count, device=ids.device).expand(batch, count)
        prompt_BPD = self.prompt(places).to(embedded_BTD.dtype)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch, count), mask], 1)
        both = torch.cat([prompt_BPD, embedded_BTD], 1)
        return self.backbone(inputs_embeds=both, attention_mask=mask, **inputs)[0][:, count:]

    def taught(self, logits: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """How far the last task's answers are from a teacher's; see ``Head.taught``."""
        ((name, _),) = self._asked(None, None).items()
        head: Any = self.heads[name]
        return head.taught(logits, teacher, labels)

    def _asked(
        self, task_ids: Tensor | None, tasks: Sequence[str] | None
    ) -> Mapping[str, Tensor | None]:
        """The texts that ask for each task; None = all."""
        if tasks is not None:
            return {self._known(name): None for name in tasks}
        if task_ids is not None:
            places = [int(place) for place in task_ids.unique()]
            if not places or places[0] < 0 or places[-1] >= len(self.heads):
                raise UserError(f"task_ids {places} are not all places in {self.tasks}")
            if len(places) == 1:
                return {self.tasks[places[0]]: None}
            return {self.tasks[n]: (task_ids == n).nonzero().squeeze(1) for n in places}
        if self.task is not None:
            return {self._known(self.task): None}
        if len(self.heads) == 1:
            return {self.tasks[0]: None}
        raise UserError(
            f"this model has the tasks {', '.join(self.tasks)}: say which is asked for by task_ids "
            "(one a text), tasks=[...] (all of these), or model.task"
        )

    def _known(self, name: str) -> str:
        if name not in self.heads:
            raise UserError(f"task {name!r} is none of this model's: {', '.join(self.tasks)}")
        return name

    def _answers(
        self, state_BTD: Tensor, mask_BT: Tensor | None, asked: Mapping[str, Tensor | None]
    ) -> Iterator[tuple[str, Tensor]]:
        pooled_B1D = None
        for name, index_B in asked.items():
            head: Any = self.heads[name]
            rows, mask = state_BTD, mask_BT
            if not head.config.per_token:
                pooled_B1D = self.pooled(state_BTD, mask_BT) if pooled_B1D is None else pooled_B1D
                rows, mask = pooled_B1D, None
            if index_B is not None:
                rows = rows.index_select(0, index_B)
                mask = None if mask is None else mask.index_select(0, index_B)
            yield name, head(self.reader(rows, mask, self.tasks.index(name), index_B))

    def pooled(self, state_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """One state a text, (B, 1, D): the mean over its real tokens; in decoders the last one's,
        which alone has seen all of the text."""
        if mask_BT is None:
            mask_BT = state_BTD.new_ones(state_BTD.shape[:2])
        if self._looks_back():
            places = torch.arange(mask_BT.shape[1], device=mask_BT.device)
            weight_BT = F.one_hot((mask_BT.bool() * places).argmax(1), mask_BT.shape[1])
        else:
            weight_BT = mask_BT
        weight_BT1 = weight_BT[:, :, None].to(state_BTD.dtype)
        return (state_BTD * weight_BT1).sum(1, keepdim=True) / weight_BT1.sum(1, keepdim=True)

    def _looks_back(self) -> bool:
        """Does a token see only those before it."""
        modules = self.backbone.modules()
        return any(bool(getattr(module, "is_causal", False)) for module in modules)


def poolerless(config: Any) -> dict[str, bool]:
    """What keeps AutoModel from making a pooler, where a class would: the heads read states."""
    cls = MODEL_MAPPING[type(config)]
    known = inspect.signature(cls.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def add_bridge(model: TasksModel, language_model: PreTrainedModel, layers: int | None) -> None:
    """Put the first blocks of a language model between backbone and heads; None = all."""
    width = model.config.get_text_config().hidden_size
    model.bridge, config = bridge_of(width, language_model, layers)
    model.bridge.to(next(model.backbone.parameters()).device)
    model.config.turnout_bridge = config.to_dict()


def _bridge(config: Any) -> Bridge | None:
    """The empty bridge that a config asks for."""
    asked = getattr(config, "turnout_bridge", None)
    if asked is None:
        return None
    made = AutoConfig.for_model(**asked)
    return Bridge(config.get_text_config().hidden_size, made)


def add_cases(model: TasksModel, count: int) -> None:
    """A vector for each class of ``case_ids``, added to the embeddings of words; 0 at first."""
    model.config.turnout_cases = count
    made = _cases(model.config)
    assert made is not None
    nn.init.zeros_(made.weight)
    model.case = made.to(next(model.backbone.parameters()).device)


def _cases(config: Any) -> nn.Embedding | None:
    count = getattr(config, "turnout_cases", None)
    return None if count is None else nn.Embedding(count, config.get_text_config().hidden_size)


def add_prompt(model: TasksModel, kind: str, tokens: int) -> None:
    """States that are learned, before every text. kind: ``prompt`` or ``p-tuning``."""
    model.config.turnout_prompt = {"kind": kind, "tokens": tokens}
    made = _prompt(model.config)
    assert made is not None
    model.prompt = made.to(next(model.backbone.parameters()).device)


def _prompt(config: Any) -> nn.Module | None:
    """What makes the prompt that a config asks for: a table, or PEFT's small network."""
    asked = getattr(config, "turnout_prompt", None)
    if asked is None:
        return None
    width = config.get_text_config().hidden_size
    if asked["kind"] == "prompt":
        return nn.Embedding(asked["tokens"], width)
    made = PromptEncoderConfig(
        num_virtual_tokens=asked["tokens"],
        token_dim=width,
        num_transformer_submodules=1,
        encoder_hidden_size=width,
        task_type="FEATURE_EXTRACTION",
    )
    return PromptEncoder(made)


def with_heads(
    backbone: PreTrainedModel, heads: Mapping[str, HeadConfig], seed: int = 0
) -> TasksModel:
    """A backbone (as AutoModel gives it) with a fresh head a task, drawn by the seed. Raises
    UserError without tasks, or for a name that no module can have."""
    if not heads:
        raise UserError("a model of tasks needs at least one")
    for name in heads:
        if not name.isidentifier():
            raise UserError(f"task {name!r}: a name of letters, digits and _ is needed")
    config = backbone.config
    config.turnout_heads = [{"name": name, **head.model_dump()} for name, head in heads.items()]
    config.architectures = ["TasksModel"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TasksModel(config, backbone)
    return model.to(next(backbone.parameters()).device)


def add_head(model: TasksModel, name: str, head: HeadConfig, seed: int = 0) -> None:
    """One task more; the others answer as before, bit for bit, as long as only the new head (and
    private units of it) is trained."""
    if name in model.heads:
        raise UserError(f"there is a task {name!r} already")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model._add(name, head)
    model.config.turnout_heads = [
        *model.config.turnout_heads,
        {"name": name, **head.model_dump()},
    ]
    model.heads[name].to(next(model.backbone.parameters()).device)
