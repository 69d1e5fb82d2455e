"""A trained noise matrix on the logits of attention: softmax((Q K^T + N) / sqrt(d_k)) V.

N has the shape (batch, heads, query, key). Its entries are m + sigma_h * z, with one sigma to each
head h, z ~ N(0, 1), and, where asked for, a mean of low rank that depends on the content:
m = (q A)(k B)^T, with B = 0 at the start. Sigma counts in sizes of the scaled logits: what is added
after the division by sqrt(d_k) is size_h * sigma_h * z.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from turnout.flow import Flow, hash_bits, hash_normal
from turnout.noise.base import Noise, NoiseConfig, NoisePlace


class AttentionNoiseConfig(NoiseConfig):
    """Noise on the logits of self-attention. rank: of the mean, where ``mean`` asks for one."""

    kind: Literal["attention"] = "attention"
    mean: bool = False
    rank: Annotated[int, Field(gt=0)] = 4


class AttentionNoise(Noise):
    """One sigma to each head, and the two factors of its mean."""

    Config: ClassVar[type[NoiseConfig]] = AttentionNoiseConfig
    number: ClassVar[int] = 2
    config: AttentionNoiseConfig

    def __init__(self, config: AttentionNoiseConfig, place: NoisePlace) -> None:
        super().__init__(config, place, elements=place.heads, sizes=place.heads)
        shape = place.heads, place.head_width, config.rank
        self.ask = self.answer = None
        if config.mean:  # A and B
            self.ask = nn.Parameter(torch.randn(shape) * place.head_width**-0.5)
            self.answer = nn.Parameter(torch.zeros(shape))

    @property
    def memory(self) -> tuple[str, str]:
        """Where a training pass keeps the mean squares of its means, (H,)."""
        return f"{self.place.key}.noise", "mean_square"

    def mean_square(self, flow: Flow) -> Tensor:
        found = flow.memory.get(self.memory)
        return torch.zeros_like(self.rho) if found is None else found

    def bias(self, keys_B: Tensor, place_BQ: Tensor, place_BK: Tensor, scale: float) -> Tensor:
        """What is added to the scaled logits but for the mean, (B, H, Q, K), float32. place_BQ,
        place_BK: of queries and keys in their texts; draws per sequence or pass depend on how far
        apart these are. scale: of the noise in this pass."""
        heads = len(self.rho)
        if self.config.per == "token":
            keys_BQ = hash_bits(keys_B[:, None], place_BQ)
            keys_BQK = hash_bits(keys_BQ[:, :, None], place_BK[:, None])
            draw_BHQK = hash_normal(keys_BQK, heads, dim=1)
        else:  # drawn once a distance S, and handed out to the pairs
            apart_BQK = place_BQ[:, :, None] - place_BK[:, None]
            least, most = int(apart_BQK.min()), int(apart_BQK.max())
            apart_S = torch.arange(least, most + 1, device=keys_B.device)
            draw_BHS = hash_normal(hash_bits(keys_B[:, None], apart_S), heads, dim=1)
            at_BHR = (apart_BQK - least).flatten(1)[:, None].expand(-1, heads, -1)
            draw_BHQK = draw_BHS.gather(2, at_BHR).unflatten(2, apart_BQK.shape[1:])
        scale_H = scale * self.size * self.sigma
        return draw_BHQK * scale_H[:, None, None]

    def turn(self, query_BHQD: Tensor, scale: float) -> Tensor:
        """The queries with the mean of the noise in them: (q + q A B^T) k^T = q k^T + (q A)(k B)^T,
        so the mean costs no product of queries and keys."""
        if self.ask is None or self.answer is None:
            return query_BHQD
        ask, answer = self.ask.to(query_BHQD.dtype), self.answer.to(query_BHQD.dtype)
        return query_BHQD + scale * (query_BHQD @ ask) @ answer.transpose(1, 2)

    def note_mean(
        self, flow: Flow, query_BHQD: Tensor, key_BHKD: Tensor, seen: Tensor, scale: float
    ) -> None:
        """Keep the mean squares of a training pass's relative means in its memory. seen: bool (B,
        1|H, Q, K), the pairs that count. scale: of the logits."""
        if self.ask is None or self.answer is None:
            return
        ask, answer = self.ask.to(query_BHQD.dtype), self.answer.to(query_BHQD.dtype)
        mean_BHQK = (query_BHQD @ ask) @ (key_BHKD @ answer).transpose(2, 3)
        square_H, count = _square(mean_BHQK.float() * scale, seen)
        flow.memory[self.memory] = square_H / count / self.size**2

    def measure(self, logit_BHQK: Tensor, seen: Tensor) -> None:
        """Note the size of the scaled logits about the mean of their row, which a softmax does not
        see. seen: as in ``note_mean``."""
        logit_BHQK = torch.where(seen, logit_BHQK.float(), 0.0)
        mean = logit_BHQK.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)
        square_H, count = _square(logit_BHQK - mean, seen)
        self.note(square_H, count.expand_as(square_H))


def _square(value_BHQK: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squares of each head over the pairs that count, and their number."""
    square_H = torch.where(seen, value_BHQK, 0.0).square().sum((0, 2, 3))
    return square_H, seen.expand(len(value_BHQK), 1, *value_BHQK.shape[2:]).sum().clamp_min(1)
