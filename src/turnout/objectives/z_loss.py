"""Keep the logits of gates small."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def z_loss(logit_BTU: Tensor) -> Tensor:
    """Mean over rows of the squared log-partition of each unit's two choices, run and skip.

    The router z-loss of ST-MoE (Zoph et al. 2022, arXiv 2202.08906, eq. 5), whose logsumexp is over
    experts; a gate's choices are its logit and 0. Minimal as the logit falls; its gradient is
    2 softplus(logit) sigmoid(logit), so large logits are pulled down most.
    """
    return F.softplus(logit_BTU).square().mean()
