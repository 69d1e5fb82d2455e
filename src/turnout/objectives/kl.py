"""Trained noise as variational inference: how far it is from its prior, and from itself.

A layer draws eps ~ q(eps) = N(mu, sigma^2), element by element. With w for all that is drawn, D for
the data and P(w) = N(0, prior^2), the evidence lower bound of Blundell et al. 2015 (arXiv
1505.05424, equation 2; their theta = (mu, rho)) is

    -F(D, theta) = E_q(w|theta)[log P(D|w)] - KL[q(w|theta) || P(w)]

which Kingma et al. 2015 (arXiv 1506.02557, equations 2 and 3) write as L(phi) = L_D(phi) -
D_KL(q_phi(w) || p(w)). The task's loss is a mean over labels, so the divergence counts by
beta = 1 / (number of training rows) in the bound itself; ``objectives.kl`` is that beta. The noise
is drawn anew for each token, which is the local form of Kingma et al.: lower variance, one q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_kl(mean_square: Tensor, sigma: Tensor, prior: float) -> Tensor:
    """KL[N(mu, sigma^2) || N(0, prior^2)] in nats, element by element, in float32.

    mean_square: mu^2, or its mean where mu depends on the input. sigma: above 0, of the same shape.
    0 exactly where mu = 0 and sigma = prior.
    """
    ratio = (sigma.float() / prior) ** 2
    return 0.5 * (ratio - 1.0 - ratio.log() + mean_square.float() / prior**2)


def kl(elements: Sequence[Tensor], free_bits: float = 0.0) -> Tensor:
    """Sum of the divergences of all elements (scalar, nats).

    free_bits: nats of each element that cost nothing more and are not pulled to the prior (Kingma
    et al. 2016, arXiv 1606.04934, appendix C.8).
    """
    parts = [each.clamp_min(free_bits).sum() if free_bits else each.sum() for each in elements]
    return torch.stack(parts).sum()


def consistency(logits: Tensor, other: Tensor, keep: Tensor | None = None) -> Tensor:
    """Half of KL(p || q) + KL(q || p) of two passes' answers, in nats (scalar): R-Drop (arXiv
    2106.14448). Mean over sequences, or over the tokens to keep.

    logits, other: (..., C). keep: bool (...), None = all. Each pass learns from the other.
    """
    log_p, log_q = (F.log_softmax(each.float(), -1) for each in (logits, other))
    distance = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    if keep is None:
        return distance.mean()
    return (distance * keep).sum() / keep.sum().clamp_min(1)
