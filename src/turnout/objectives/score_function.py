"""Train a distribution that is sampled from: the score function (REINFORCE) of the task loss."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.route import Trace


def score_function(trace: Trace, loss_B: Tensor) -> Tensor:
    """Mean of (loss - mean loss) x log-probability of the drawn routes (Williams 1992).

    loss_B: a loss a sequence (B,), detached here. Its *gradient* is what matters: it makes routes
    with a loss below the batch's mean more likely. The value is near 0 and means nothing.
    """
    advantage_B = (loss_B - loss_B.mean()).detach()
    total = torch.zeros((), device=loss_B.device)
    for route in trace.values():
        if route.log_prob_BT is not None:
            total = total + (advantage_B * route.log_prob_BT.sum(1)).mean()
    return total
