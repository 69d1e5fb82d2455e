"""Train the heads of an exit router: on the labels, and on a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.flow import IGNORED
from turnout.objectives.distill import distill, masked_mean


def exits(
    heads: Sequence[Tensor],
    final: Tensor,
    labels: Tensor | None,
    teacher: Tensor | None = None,
    probes: Sequence[Tensor] = (),
) -> Tensor:
    """Mean over heads of cross-entropy plus distillation.

    heads: logits (B, C) or (B, T, C) in order of depth. final: the last layer's logits, the
    teacher (self-distillation) unless ``teacher`` (the dense host's) is given; always detached.
    labels: (B) or (B, T), -100 = ignored. probes: scores in (0, 1) of the learned criterion,
    trained to say whether a head's answer differs from the last layer's (FastBERT arXiv
    2004.02178, BERxiT).
    """
    target = (final if teacher is None else teacher).detach()
    keep = labels != IGNORED if labels is not None and labels.ndim == 2 else None
    total = torch.zeros((), device=final.device)
    for logits in heads:
        total = total + distill(logits, target, keep)
        if labels is not None:
            flat = logits.flatten(0, -2).float()
            total = total + F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED)
    for logits, score in zip(heads, probes, strict=False):
        differs = (logits.argmax(-1) != final.argmax(-1)).float()
        each = F.binary_cross_entropy(score, differs, reduction="none")
        total = total + masked_mean(each, keep)
    return total / max(1, len(heads))
