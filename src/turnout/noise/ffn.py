"""Noise on the output of a feed-forward network: h' = h + mu + sigma * z, z ~ N(0, I).

mu and sigma are vectors as wide as the state; h is what the network would add to the stream. The
reparameterisation is that of Kingma and Welling (arXiv 1312.6114), the softplus that of Blundell et
al. (arXiv 1505.05424).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from turnout.flow import Flow, hash_bits, hash_normal
from turnout.noise.base import Noise, NoiseConfig, NoisePlace


class FfnNoiseConfig(NoiseConfig):
    """Noise on what the feed-forward network adds to the stream."""

    kind: Literal["ffn"] = "ffn"


class FfnNoise(Noise):
    """One mean and one sigma to each of D dimensions."""

    Config: ClassVar[type[NoiseConfig]] = FfnNoiseConfig
    number: ClassVar[int] = 1

    def __init__(self, config: NoiseConfig, place: NoisePlace) -> None:
        super().__init__(config, place, elements=place.width, sizes=1)
        self.mu = nn.Parameter(torch.zeros(place.width)) if config.mean else None

    def mean_square(self, flow: Flow) -> Tensor:
        return torch.zeros_like(self.rho) if self.mu is None else self.mu.float() ** 2

    def keys_BT(self, flow: Flow, place_BT: Tensor) -> Tensor:
        """What each token's noise is drawn from, int64. place_BT: of each token in its text."""
        keys_B1 = self.keys_B(flow, len(place_BT), place_BT.device)[:, None]
        if self.config.per == "token":
            return hash_bits(keys_B1, place_BT)
        return keys_B1.expand(place_BT.shape)

    def perturb(self, out: Tensor, keys_R: Tensor, scale: float) -> Tensor:
        """Rows (..., D) with noise, of the same shape and dtype. keys_R: of each row. scale: of the
        noise in this pass."""
        if self.config.per == "forward":
            keys_R = keys_R[:1]  # the same for all rows: drawn once
        noise_RD = self.sigma * hash_normal(keys_R, out.shape[-1])
        if self.mu is not None:
            noise_RD = noise_RD + self.mu.float()
        noise_RD = (scale * self.size * noise_RD).to(out.dtype)
        return (out.reshape(-1, out.shape[-1]) + noise_RD).view(out.shape)

    def measure(self, out_RD: Tensor) -> None:
        """Note the size of some rows (R, D)."""
        count = torch.full_like(self.size, out_RD.numel())
        self.note(out_RD.float().square().sum()[None], count)
