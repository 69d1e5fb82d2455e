"""Time of a part of a model, by hooks: the same ones for every arm."""

from __future__ import annotations

import time
from typing import Any

from torch import nn


class Stopwatch:
    """Seconds spent between entering one module and leaving another, summed over layers."""

    def __init__(self, first: list[nn.Module], last: list[nn.Module]) -> None:
        self.seconds, self._start = 0.0, 0.0
        for module in first:
            module.register_forward_pre_hook(self._begin)
        for module in last:
            module.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._start
