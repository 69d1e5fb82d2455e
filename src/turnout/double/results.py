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
    """Time of one pass that answers so many tasks, as a multiple of a pass that answers the first
    alone: median over the rounds of paired ratios, and their 95 % interval."""

    model_config = ConfigDict(extra="forbid")

    tasks: int
    ratio: float
    low: float
    high: float
    seconds: float


class TasksResults(BaseModel):
    """parameters: of the whole model; added: of them, what one more task costs on average (heads,
    routers and routing layers, shared out). transfer: by task a and b, what a gains when it is
    trained with b, None = not asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str
    tasks: list[TaskResult]
    passes: list[PassTime]
    parameters: int
    added: float
    machine: dict[str, Any]
    transfer: dict[str, dict[str, float]] | None = None
    notes: list[str] = []

    def save(self, path: Path) -> None:
        """Write results.json, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")
