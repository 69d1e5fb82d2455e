"""Which number format trains fastest here: measured, not assumed.

bf16 is fast on a CPU with AMX and slower than fp32 on one without, so a flag alone would lie.
"""

from __future__ import annotations

import functools
import time
from typing import Literal, TypeVar

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from turnout.errors import UserError

Precision = Literal["fp32", "bf16"]


def best_device() -> str:
    """Where models run unless somebody says otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"


M = TypeVar("M", bound=PreTrainedModel)


def moved(model: M, device: str | None = None) -> M:
    """The model on this device, or on the best one. Raises UserError for one that isn't there."""
    try:
        return model.to(device or best_device())  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used: {first}") from None


@functools.cache
def faster_precision(device: str = "cpu") -> Precision:
    """fp32 or bf16, by the time of a matrix product of a usual size on this device."""
    if device != "cpu":
        supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16" if supported else "fp32"
    # bf16 must win clearly: the casts around each product cost time too.
    return "bf16" if _seconds(torch.bfloat16) < 0.6 * _seconds(torch.float32) else "fp32"


def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.randn(1024, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    times = []
    with torch.inference_mode():
        for _ in range(8):
            start = time.perf_counter()
            F.linear(x, weight)
            times.append(time.perf_counter() - start)
    return sorted(times)[2]


def resolve(wanted: Literal["auto", "fp32", "bf16"], device: str = "cpu") -> Precision:
    """The format that a recipe asks for."""
    return faster_precision(device) if wanted == "auto" else wanted
