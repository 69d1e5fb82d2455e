"""One backbone, a head a task: y_t = head_t(router(backbone(x))).

A PreTrainedModel like any other: it is installed on, trained, saved and loaded as one. Its config
is that of the backbone with the heads beside it (``turnout_heads``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from turnout.errors import UserError
from turnout.hosts.additions import empty_bridge, fresh_cases, fresh_inner, fresh_prompt
from turnout.units.output import Reader
from turnout.units.task_heads import Head, HeadConfig, InnerHeads, WordsHead


@dataclass
class TasksOutput(ModelOutput):
    """loss, where there are labels; logits: of one task, or by task where several are asked for,
    each in the order of the texts that ask for it; states: in place of them, where they are to be
    kept."""

    loss: Tensor | None = None
    logits: Any = None
    states: Tensor | None = None


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
        self.case = fresh_cases(config)
        self.prompt = fresh_prompt(config)
        self.bridge = empty_bridge(config)
        self.reader = Reader()
        self.heads = nn.ModuleDict()
        self.inner: InnerHeads | None = None
        self.task: str | None = None
        for fields in config.turnout_heads:  # a list: keys of a config are sorted when it is saved
            own = {key: value for key, value in fields.items() if key != "name"}
            self._add(fields["name"], HeadConfig.model_validate(own))
        self.inner = fresh_inner(config)
        self.post_init()

    def _add(self, name: str, config: HeadConfig) -> None:
        width = self.config.get_text_config().hidden_size
        if config.kind == "words":
            table: Any = self.get_input_embeddings()
            if table.embedding_dim != width:
                raise UserError(
                    f"task {name!r}: words are guessed by the table of embeddings, and this host's "
                    f"are {table.embedding_dim} wide where its states are {width}"
                )
            self.heads[name] = WordsHead(config, width, table.num_embeddings)
            return
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
        states: Tensor | None = None,
        keep: bool = False,
        **kwargs: Any,
    ) -> TasksOutput:
        """task_ids: the task of each text, (B,), as a place in ``tasks``. tasks: every text asks
        for all of these. Neither = all ask for ``task``. labels: of one task; a head of words is
        then read where there are labels only (see ``WordsHead``). case_ids: how each token's word
        is written, (B, T) (see tasks/casing.py). keep: give the ``states`` of these texts for their
        one task, (B, T, L, D) of L layers, T = 1 for a head of whole texts. states: what such a
        pass has given; the backbone is not run then. Raises UserError where nothing is asked for,
        for an unknown task, and for labels of several."""
        asked = self._asked(task_ids, tasks)
        if labels is not None and (len(asked) > 1 or tasks is not None):
            raise UserError("labels are of one task, which task_ids or model.task name")
        if states is None:
            every = any(self._head(name).mix is not None for name in asked)
            layers = self.read(input_ids, attention_mask, case_ids, every, **kwargs)
        else:
            layers = states.unbind(2)
            if attention_mask is not None and states.shape[1] != attention_mask.shape[1]:
                attention_mask = None  # one state a text
        if keep:
            return TasksOutput(states=self._kept(layers, attention_mask, asked))
        if self.bridge is not None:
            layers = (*layers[:-1], self.bridge(layers[-1], attention_mask))
        answers = dict(self._answers(layers, attention_mask, asked, labels))
        if len(asked) > 1 or tasks is not None:
            return TasksOutput(logits=answers)
        ((name, logits),) = answers.items()
        loss = None if labels is None else self._head(name).loss(logits, labels)
        return TasksOutput(loss, logits)

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        case_ids: Tensor | None = None,
        every: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """What the backbone makes of the texts, (B, T, D), with what is added to their words and
        the prompt before them, if any: the last layer alone, or every one, from the embeddings
        on."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if every:
            inputs["output_hidden_states"] = True
        cased = self.case is not None and case_ids is not None
        if self.prompt is not None or cased:
            ids = inputs.pop("input_ids")
            embedded_BTD = self.get_input_embeddings()(ids)
            if cased:
                embedded_BTD = embedded_BTD + self.case(case_ids).to(embedded_BTD.dtype)  # type: ignore[misc]
            inputs["inputs_embeds"] = embedded_BTD
            if self.prompt is not None:
                del inputs["inputs_embeds"]
                inputs = self.prompt(inputs, embedded_BTD)
        out = self.backbone(**inputs)
        layers = tuple(out.hidden_states) if every else (out[0],)
        if self.prompt is None:
            return layers
        return tuple(state_BTD[:, self.prompt.states :] for state_BTD in layers)

    def _kept(
        self, layers: Sequence[Tensor], mask_BT: Tensor | None, asked: Mapping[str, Tensor | None]
    ) -> Tensor:
        """All that the head of the one task needs of these texts, (B, T, L, D)."""
        (name,) = asked
        if not self._head(name).config.per_token:
            layers = [self.pooled(state_BTD, mask_BT) for state_BTD in layers]
        return torch.stack(tuple(layers), 2)

    def _head(self, name: str) -> Any:
        return self.heads[name]

    def taught(self, logits: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """How far the last task's answers are from a teacher's; see ``Head.taught``."""
        ((name, _),) = self._asked(None, None).items()
        return self._head(name).taught(logits, teacher, labels)

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
        self,
        layers: Sequence[Tensor],
        mask_BT: Tensor | None,
        asked: Mapping[str, Tensor | None],
        labels: Tensor | None,
    ) -> Iterator[tuple[str, Tensor]]:
        pooled: dict[int, Tensor] = {}
        for name, index_B in asked.items():
            head = self._head(name)
            places = range(len(layers) - 1 if head.mix is None else 0, len(layers))
            if head.config.per_token:
                read, mask = [layers[place] for place in places], mask_BT
            else:
                for place in places:
                    if place not in pooled:
                        pooled[place] = self.pooled(layers[place], mask_BT)
                read, mask = [pooled[place] for place in places], None
            rows = read[-1] if head.mix is None else head.mix(read)
            if index_B is not None:
                rows = rows.index_select(0, index_B)
                mask = None if mask is None else mask.index_select(0, index_B)
            rows = self.reader(rows, mask, self.tasks.index(name), index_B)
            table: Any = self.get_input_embeddings()
            words = (table.weight, labels) if isinstance(head, WordsHead) else ()
            yield name, head(rows, *words)

    def pooled(self, state_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """One state a text, (B, 1, D): the mean over its real tokens; in decoders the last one's,
        which alone has seen all of the text."""
        if mask_BT is None:
            mask_BT = state_BTD.new_ones(state_BTD.shape[:2])
        if self.looks_back():
            places = torch.arange(mask_BT.shape[1], device=mask_BT.device)
            weight_BT = F.one_hot((mask_BT.bool() * places).argmax(1), mask_BT.shape[1])
        else:
            weight_BT = mask_BT
        weight_BT1 = weight_BT[:, :, None].to(state_BTD.dtype)
        return (state_BTD * weight_BT1).sum(1, keepdim=True) / weight_BT1.sum(1, keepdim=True)

    def looks_back(self) -> bool:
        """Does a token see only those before it."""
        modules = self.backbone.modules()
        return any(bool(getattr(module, "is_causal", False)) for module in modules)


def poolerless(config: Any) -> dict[str, bool]:
    """What keeps AutoModel from making a pooler, where a class would: the heads read states."""
    cls = MODEL_MAPPING[type(config)]
    known = inspect.signature(cls.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def with_heads(
    backbone: PreTrainedModel,
    heads: Mapping[str, HeadConfig],
    seed: int = 0,
    mixed: bool = False,
) -> TasksModel:
    """A backbone (as AutoModel gives it) with a fresh head a task, drawn by the seed. mixed: heads
    read a mix of all layers (see ``DepthMix``), whatever their configs say. Raises UserError
    without tasks, or for a name that no module can have."""
    if not heads:
        raise UserError("a model of tasks needs at least one")
    for name in heads:
        check_name(name)
    config = backbone.config
    if mixed:
        heads = {name: reading_all(backbone, head) for name, head in heads.items()}
    config.turnout_heads = [{"name": name, **head.model_dump()} for name, head in heads.items()]
    config.architectures = ["TasksModel"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TasksModel(config, backbone)
    whole: Any = model
    return whole.to(next(backbone.parameters()).device)


def reading_all(backbone: PreTrainedModel, head: HeadConfig) -> HeadConfig:
    """The head as one that mixes all layers of a backbone; one of words reads the last as ever."""
    if head.kind == "words":
        return head
    config: Any = backbone.config.get_text_config()
    return head.model_copy(update={"layers": config.num_hidden_layers + 1})


def check_name(name: str) -> None:
    """Raise UserError for the name of a task that no module can have."""
    if not name.isidentifier():
        raise UserError(f"task {name!r}: a name of letters, digits and _ is needed")
    if hasattr(nn.ModuleDict, name):
        raise UserError(f"task {name!r}: PyTorch needs this name for itself; choose another")


def add_head(model: TasksModel, name: str, head: HeadConfig, seed: int = 0) -> None:
    """One task more; the others answer as before, bit for bit, as long as only the new head (and
    private units of it) is trained. Raises UserError for a name that is taken or cannot be one."""
    check_name(name)
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
