"""Train a distribution that is sampled from: the score function (REINFORCE) of the task loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.flow import IGNORED
from turnout.route import Route


def loss_per_sequence(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sequence (B,); a mean over its labelled tokens where there are many.

    logits: (B, C) or (B, T, C). labels: (B) or (B, T), -100 = ignored.
    """
    each = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return each if each.ndim == 1 else each.sum(1) / (labels != IGNORED).sum(1).clamp_min(1)


def score_function(routes: Mapping[str, Route], loss_B: Tensor) -> Tensor:
    """Mean of (loss - mean loss) x log-probability of the drawn routes (Williams 1992).

    loss_B: a loss a sequence (B,), detached here. Its *gradient* is what matters: it makes routes
    with a loss below the batch's mean more likely. The value is near 0 and means nothing.
    """
    advantage_B = (loss_B - loss_B.mean()).detach()
    total = torch.zeros((), device=loss_B.device)
    for route in routes.values():
        if route.log_prob_BT is not None:
            total = total + (advantage_B * route.log_prob_BT.sum(1)).mean()
    return total
