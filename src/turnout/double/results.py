"""What was measured of several tasks, as it stands in results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from turnout.files import write_text


class TaskResult(BaseModel):
    """One task. quality, low, high: its headline on the test rows (validation where there are
    none) and the bootstrap interval over them. use: mean weight of each routing layer for it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    metric: str
    rows: int
    quality: float
    low: float
    high: float
    report: dict[str, Any]
    use: list[float]


class PassTime(BaseModel):
    """One pass that answers so many tasks. ratio: its time as a multiple of a pass of the plain
    backbone with one head (no routing, no layer between), median over the rounds of paired ratios,
    and their 95 % interval. So many models of one task each would take ``tasks`` times that.
    gflops: of a text, counted."""

    model_config = ConfigDict(extra="forbid")

    tasks: int
    ratio: float
    low: float
    high: float
    seconds: float
    gflops: float


class TasksResults(BaseModel):
    """parameters: of the whole model; added: of them, beside the backbone's (heads, routers,
    routing layers, and what stands before or behind the backbone). plain_seconds, plain_gflops: of
    a pass of the plain backbone with one head, see ``PassTime``. transfer: by task a and b, what a
    gains when it is trained with b, None = not asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str
    tasks: list[TaskResult]
    passes: list[PassTime]
    parameters: int
    added: int
    plain_seconds: float
    plain_gflops: float
    machine: dict[str, Any]
    transfer: dict[str, dict[str, float]] | None = None
    notes: list[str] = []

    def save(self, path: Path) -> None:
        """Write results.json, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")
