"""How far one policy is from another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bernoulli_kl(logit: Tensor, other: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence KL(p || q) of Bernoulli decisions, in nats (scalar).

    logit, other: log-odds of p and of q, of one shape. 0 exactly when they are equal.
    """
    p = logit.sigmoid()
    run = F.logsigmoid(logit) - F.logsigmoid(other)
    skip = F.logsigmoid(-logit) - F.logsigmoid(-other)
    return (p * run + (1 - p) * skip).mean()
