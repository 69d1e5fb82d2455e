"""What a measurement leaves behind: the schema of results.json.

Reports, tables and plots are made from this file only, so they can be
made again without the model.
Every field is explained in docs/results-schema.md; a test keeps page and classes in step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from turnout.errors import UserError
from turnout.files import read_json, write_json

SCHEMA_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Family = Literal["dense", "routed", "random", "static", "noise"]


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays to Python ones: scikit-learn's reports are full of them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Machine(_Record):
    """Where it ran; `turnout.measure.machine.describe` fills it."""

    cpu: str
    cores: int = Field(ge=1)
    threads: int = Field(ge=1)
    memory_bytes: int | None
    isa: str
    amx: bool
    gpu: str | None
    system: str
    python: str
    torch: str
    transformers: str
    turnout: str


class TaskSummary(_Record):
    kind: str
    headline: str
    test_examples: int = Field(ge=1)
    labels: list[str]


class Quality(_Record):
    """The headline metric on the test set, with its bootstrap interval."""

    metric: str
    value: float
    low: float
    high: float


class Seconds(_Record):
    """Time for one pass over the test set: the median round and its interval, and every round."""

    median: Positive
    low: Positive
    high: Positive
    runs: list[Positive] = Field(min_length=1)


class Speedup(_Record):
    """Dense seconds over this arm's seconds, paired per round: above 1 is faster than dense."""

    value: Positive
    low: Positive
    high: Positive


class Difference(_Record):
    """Quality minus that of the dense host, with a bootstrap interval over the same examples."""

    value: float
    low: float
    high: float


class NoiseDraws(_Record):
    """Trained noise of an arm: its scale, passes with noise of their own, and the standard
    deviation of the quality over them."""

    scale: NotNegative
    draws: int = Field(ge=1)
    spread: NotNegative


class Arm(_Record):
    """One model that was measured: the dense host, or one budget of one family."""

    name: str = Field(min_length=1)
    family: Family
    router: str | None = None
    place: str | None = None
    budget: Share | None
    noise: NoiseDraws | None = None
    share: Share
    quality: Quality
    to_dense: Difference | None = None
    report: Annotated[dict[str, JsonValue], BeforeValidator(_plain)]
    units_run: NotNegative
    units_total: Positive
    flops_per_example: NotNegative
    seconds: Seconds
    peak_memory_bytes: int | None
    speedup: Speedup
    parameters: int = Field(ge=0)


class Heatmap(_Record):
    """What ran for each token of one test sentence: `ran` is layers x tokens, 0 to 1."""

    text: str
    tokens: list[str] = Field(min_length=1)
    layers: list[str] = Field(min_length=1)
    ran: Annotated[list[list[Share]], BeforeValidator(_plain)]
    arm: str

    @model_validator(mode="after")
    def _shape(self) -> Heatmap:
        widths = {len(row) for row in self.ran}
        if len(self.ran) != len(self.layers) or widths != {len(self.tokens)}:
            raise ValueError(
                f"ran must be {len(self.layers)} layers x {len(self.tokens)} tokens, "
                f"found {len(self.ran)} rows of {sorted(widths)}"
            )
        return self


class Results(_Record):
    """The whole of results.json. `units` is arm name -> site key -> share of rows per unit."""

    schema_version: Literal[1] = SCHEMA_VERSION
    turnout_version: str
    created: str
    command: str
    machine: Machine
    model: str
    task: TaskSummary
    dtype: str
    batch_tokens: int = Field(ge=1)
    arms: list[Arm] = Field(min_length=1)
    units: Annotated[dict[str, dict[str, list[Share]]], BeforeValidator(_plain)]
    heatmap: Heatmap | None
    notes: list[str]

    @model_validator(mode="after")
    def _consistent(self) -> Results:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arm names must differ, found {names}")
        if sum(arm.family == "dense" for arm in self.arms) != 1:
            raise ValueError("exactly one arm of family 'dense' is needed: all else is read by it")
        used = [*self.units, *([self.heatmap.arm] if self.heatmap else [])]
        if unknown := sorted(set(used) - set(names)):
            raise ValueError(f"units or heatmap name arms that are not there: {unknown}")
        return self

    @property
    def dense(self) -> Arm:
        return next(arm for arm in self.arms if arm.family == "dense")

    def family(self, family: Family) -> list[Arm]:
        """Arms of one family, fastest first."""
        found = [arm for arm in self.arms if arm.family == family]
        return sorted(found, key=lambda arm: -arm.speedup.value)

    def save(self, path: str | Path) -> None:
        """Write results.json, whole or not at all."""
        write_json(Path(path), self.model_dump(mode="json"))


def load(path: str | Path) -> Results:
    """Read results.json; UserError for a missing or broken file or another schema version."""
    found = read_json(Path(path))
    version = found.get("schema_version") if isinstance(found, dict) else None
    # bool and float compare equal to 1, so the type is part of the check
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version is {version!r}; this turnout reads {SCHEMA_VERSION}. "
            "Measure again, or read it with the turnout version named in turnout_version."
        )
    try:
        return Results.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s) in all). "
            "Measure again, or repair the field; docs/results-schema.md lists them all."
        ) from error
