"""Learn from the dense host: its answers and its states."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distill(
    logits: Tensor, teacher: Tensor, keep: Tensor | None = None, temperature: float = 2.0
) -> Tensor:
    """KL(teacher || student) of softened answers, times temperature squared (Hinton et al. 2015,
    arXiv 1503.02531; their T is our temperature).

    logits, teacher: (..., C). keep: bool (...), the positions that count; None = all. Minimal (0)
    where the softmaxes agree.
    """
    student = (logits.float() / temperature).log_softmax(-1)
    target = (teacher.float() / temperature).log_softmax(-1)
    each = F.kl_div(student, target, log_target=True, reduction="none").sum(-1)
    return masked_mean(each, keep) * temperature**2


def distill_hidden(states: Tensor, teacher: Tensor, keep_BT: Tensor | None = None) -> Tensor:
    """Mean squared distance of hidden states (B, T, D) after normalising each to unit variance."""
    width = states.shape[-1:]
    ours, theirs = F.layer_norm(states.float(), width), F.layer_norm(teacher.float(), width)
    return masked_mean((ours - theirs).square().mean(-1), keep_BT)


def masked_mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over the positions that count; 0 when none does."""
    if keep is None:
        return values.mean()
    weight = keep.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1)
