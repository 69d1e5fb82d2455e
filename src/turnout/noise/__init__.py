"""PERTURB: trained distributions on what a host computes. A new kind is one file and one line."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.noise.attention import AttentionNoise, AttentionNoiseConfig
from turnout.noise.base import Noise as Noise
from turnout.noise.base import NoiseConfig as NoiseConfig
from turnout.noise.base import NoisePlace as NoisePlace
from turnout.noise.ffn import FfnNoise, FfnNoiseConfig
from turnout.registry import Registry

NOISES: Registry[type[Noise]] = Registry("noise")
for _noise in (FfnNoise, AttentionNoise):
    NOISES.add(_noise.Config.model_fields["kind"].default, _noise)

AnyNoiseConfig = Annotated[FfnNoiseConfig | AttentionNoiseConfig, Field(discriminator="kind")]
