"""Heads of tasks: what a task is answered with from the states of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout.flow import IGNORED
from turnout.objectives.distill import distill
from turnout.units.depth_mix import DepthMix

HeadKind = Literal["class", "labels", "number", "tag", "span", "vector", "words"]
PER_TOKEN: frozenset[HeadKind] = frozenset({"tag", "span", "words"})
NAMED: frozenset[HeadKind] = frozenset({"class", "labels", "tag"})  # their outputs have names
BEGIN, END, BOTH = 1, 2, 3  # marks of an answer's first and last token


class HeadConfig(BaseModel):
    """kind: ``class`` one label a text, ``labels`` any number of them, ``number`` regression,
    ``tag`` a label a token, ``span`` where an answer begins and ends, ``vector`` an embedding of
    length 1, ``words`` a word of the backbone's vocabulary a token. width: classes, numbers, or the
    length of the vector; 2 for spans; 1 for words. layers: how many layers' states it mixes (see
    ``DepthMix``), that of the embeddings included; 0 = it reads the last one's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: HeadKind
    width: int = Field(gt=0)
    layers: int = Field(default=0, ge=0)

    @property
    def per_token(self) -> bool:
        """Does it read every token, or the text as a whole."""
        return self.kind in PER_TOKEN


class Head(nn.Module):
    """A linear layer that reads rows (B, T, D), T = 1 for a whole text. mix: of the layers' states,
    before the routing layer; None = of the last one. log_variance: of the task's
    noise, where a training learns how much its loss should count."""

    def __init__(self, config: HeadConfig, width: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, config.width)
        self.mix = DepthMix(config.layers) if config.layers else None
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
        inside = [each.masked_fill(outside[..., None], -1e4) for each in (logits, teacher)]
        ends = zip(*(each.unbind(-1) for each in inside), strict=True)
        return torch.stack([distill(own, taught) for own, taught in ends]).mean()


class InnerHeads(nn.Module):
    """Heads of the tasks at inner layers, while a model is trained: by task, one a layer."""

    def __init__(self, configs: Mapping[str, HeadConfig], width: int, layers: int) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    Head(config.model_copy(update={"layers": 0}), width, 0.0) for _ in range(layers)
                )
                for name, config in configs.items()
                if config.kind != "words"
            }
        )


class WordsHead(nn.Module):
    """A language model's head: logits of the vocabulary by the table of the backbone's own
    embeddings, V words, with a bias of its own. What it reads it may change first, h + s gelu(W h),
    with s = 0 at first: on a language model whose tables are tied it begins as that model's head.
    """

    def __init__(self, config: HeadConfig, width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.mix = None
        self.change = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(
        self, rows_BTD: Tensor, table_VD: Tensor, labels_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V). With labels only their places are read, all others are 0, in (B, T, 3):
        the label's log probability, the likeliest word, and its log probability, in float32."""
        if labels_BT is None:
            return self._logits(rows_BTD, table_VD)
        asked_BT = labels_BT != IGNORED
        log_NV = self._logits(rows_BTD[asked_BT], table_VD).float().log_softmax(-1)
        label_N = labels_BT[asked_BT]
        best_N, word_N = log_NV.max(-1)
        found_N3 = torch.stack([log_NV.gather(1, label_N[:, None])[:, 0], word_N, best_N], 1)
        empty = torch.zeros(*labels_BT.shape, 3, device=found_N3.device)
        return empty.index_put((asked_BT,), found_N3)

    def _logits(self, rows: Tensor, table_VD: Tensor) -> Tensor:
        changed = rows + self.scale.to(rows.dtype) * F.gelu(self.change(rows)).to(rows.dtype)
        return F.linear(changed, table_VD.to(rows.dtype), self.bias.to(rows.dtype))

    def loss(self, found_BT3: Tensor, labels_BT: Tensor) -> Tensor:
        """Mean cross-entropy over the places with a label."""
        return -found_BT3[..., 0].sum() / (labels_BT != IGNORED).sum().clamp_min(1)


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
