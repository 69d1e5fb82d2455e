"""How to write: one record of settings, and what it becomes for ``generate`` of Transformers."""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig

from turnout.errors import UserError


class WriteSettings(BaseModel):
    """What a text is written with; None leaves a choice to the model's own generation config.

    max_new_tokens: the most that one answer may have. temperature, top_p (Holtzman et al. 2020,
    arXiv 1904.09751), top_k, min_p (Nguyen et al. 2024, arXiv 2407.01082): of sampling. beams: more
    than one is beam search, which does not sample. repetition_penalty: above 1, tokens that were
    there already are less likely (Keskar et al. 2019, arXiv 1909.05858). budget: share of the
    routed work, above 0 and at most 1. noise: scale of trained noise. seed: repeats the draws and
    the paths; None = new ones each time. greedy: always the likeliest token. stop: strings that end
    an answer, and are not part of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float | None, Field(gt=0)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    beams: Annotated[int, Field(ge=1)] = 1
    repetition_penalty: Annotated[float | None, Field(gt=0)] = None
    budget: Annotated[float | None, Field(gt=0, le=1)] = None
    noise: Annotated[float | None, Field(ge=0)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**62)] = None
    greedy: bool = False
    stop: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Are tokens drawn; beams and greedy search take the likeliest."""
        return not self.greedy and self.beams == 1

    def but(self, **fields: Any) -> WriteSettings:
        """These settings with other fields. Raises UserError for a value that is not allowed."""
        return settings_of(**{**self.model_dump(), **fields})


def settings_of(**fields: Any) -> WriteSettings:
    """Settings from values that a user gave. Raises UserError, which names the field."""
    return checked(WriteSettings, **fields)


S = TypeVar("S", bound=BaseModel)


def checked(kind: type[S], **fields: Any) -> S:
    """A record of some kind from values that a user gave. Raises UserError, which names the
    field."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}: found {first['input']!r}; {first['msg'].lower()}") from None


def generation_config(
    settings: WriteSettings, own: GenerationConfig, room: int, samples: int
) -> GenerationConfig:
    """What ``generate`` is given. own: the model's. room: tokens that still fit its context.
    samples: answers to each prompt. Raises UserError for samples that would all be alike."""
    if samples > 1 and not settings.samples and samples > settings.beams:
        raise UserError(
            f"samples: found {samples}, but greedy search writes one text, and {settings.beams} "
            f"beam(s) at most {settings.beams}: sample, or ask for fewer"
        )
    config = deepcopy(own)
    config.update(
        max_length=None,
        max_new_tokens=min(settings.max_new_tokens, room),
        min_new_tokens=None,
        do_sample=settings.samples,
        num_beams=settings.beams,
        num_return_sequences=samples,
    )
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        value = getattr(settings, name)
        if value is not None and (settings.samples or name == "repetition_penalty"):
            setattr(config, name, value)
    return config
