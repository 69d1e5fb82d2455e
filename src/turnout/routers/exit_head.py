"""The small heads of early exit: pool the tokens of a state, then classify."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from turnout.routers.base import masked_mean

Pool = Literal["token", "attend", "mean", "first", "last"]
QUERIES = 4


class ExitHead(nn.Module):
    """Logits from the state that enters a block, in float32.

    pool: ``token`` labels each token; ``attend`` weighs the tokens by a softmax over their
    products with a few learned queries (attention pooling, as in the set transformer's PMA,
    arXiv 1810.00825, without projections) and joins the mean to them; ``mean``, ``first``,
    ``last`` say what they do. hidden: width of the hidden layer, 0 = linear. cascade: add the
    earlier head's logits, detached, times a learned factor.
    """

    def __init__(self, width: int, hidden: int, labels: int, pool: Pool, cascade: bool) -> None:
        super().__init__()
        self.pool = pool
        attends = pool == "attend"
        self.query = nn.Parameter(torch.randn(QUERIES, width) * 0.02) if attends else None
        wide = width * (QUERIES + 1) if attends else width
        inner = hidden or wide
        self.inner = nn.Parameter(torch.randn(inner, wide) / wide**0.5) if hidden else None
        self.weight = nn.Parameter(torch.randn(labels, inner) * 0.02)
        self.bias = nn.Parameter(torch.zeros(labels))
        self.carry = nn.Parameter(torch.zeros(())) if cascade else None

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor | None, before: Tensor | None) -> Tensor:
        """State (B, T, D), mask and the earlier head's logits to (B, C), or (B, T, C) a token."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self._logits(hidden_BTD, mask_BT, before)

    def _logits(self, hidden_BTD: Tensor, mask_BT: Tensor | None, before: Tensor | None) -> Tensor:
        state = self._pooled(hidden_BTD, mask_BT)
        if self.inner is not None:
            state = F.gelu(F.linear(state, self.inner.float()))
        own = F.linear(state, self.weight.float(), self.bias.float())
        if self.carry is None or before is None:
            return own
        return own + self.carry.float() * before.detach()

    def _pooled(self, hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        if self.pool == "token":
            return hidden_BTD.float()
        if self.pool == "mean":
            return masked_mean(hidden_BTD, mask_BT)
        if self.pool == "first":
            first_B = 0 if mask_BT is None else mask_BT.int().argmax(1)
            return hidden_BTD[torch.arange(len(hidden_BTD)), first_B].float()
        if self.pool == "last":
            return _last(hidden_BTD, mask_BT).float()
        assert self.query is not None
        hidden = hidden_BTD.float()
        score_BTQ = hidden @ self.query.float().t()
        uniform_BT1 = torch.zeros_like(score_BTQ[..., :1])
        score_BTQ = torch.cat([score_BTQ, uniform_BT1], dim=-1)
        if mask_BT is not None:
            score_BTQ = score_BTQ.masked_fill(~mask_BT[:, :, None], -torch.inf)
        return (score_BTQ.softmax(1).transpose(1, 2) @ hidden).flatten(1)


def _last(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The state of the last real token (B, D), wherever the padding is."""
    if mask_BT is None:
        return hidden_BTD[:, -1]
    places = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (mask_BT * places).amax(1)
    return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=last_B.device), last_B]
