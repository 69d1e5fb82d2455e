"""More labelled rows from few: a language model goes on with lists of examples of one label.

After GPT3Mix and LAMBADA (Yoo et al. 2021, arXiv 2104.08826; Anaby-Tavor et al. 2020,
arXiv 1911.03118): what is written is cleaned, what was there already is left out, and so is what a
classifier takes for another label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from turnout.errors import UserError
from turnout.generation.alike import Seen, normalized

Write = Callable[[Sequence[str]], Sequence[str]]
Agrees = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
TEMPLATE = "{label}: {text}"


@dataclass(frozen=True)
class Row:
    """A text and its label."""

    text: str
    label: str


class AugmentSettings(BaseModel):
    """per_example: texts to write for each row. examples: rows of its label in a prompt, the row
    itself last. template: a line of a prompt, with {label} and {text}. likeness: Jaccard index of
    character 4-grams from which a text counts as seen before. threshold: least probability that the
    check gives the label. least_words: shorter texts are left out. seed: of the draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_example: Annotated[int, Field(ge=1)] = 1
    examples: Annotated[int, Field(ge=1)] = 4
    template: str = TEMPLATE
    likeness: Annotated[float, Field(gt=0, le=1)] = 0.8
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    least_words: Annotated[int, Field(ge=1)] = 2
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass
class Report:
    """What became of the texts. asked: prompts. empty: nothing usable was written. duplicate: like
    an original or an earlier one. inconsistent: the check does not agree with the label. asked is
    the sum of the others."""

    asked: int = 0
    empty: int = 0
    duplicate: int = 0
    inconsistent: int = 0
    kept: int = 0

    @property
    def written(self) -> int:
        """Texts that were usable."""
        return self.asked - self.empty

    def facts(self) -> dict[str, int]:
        """Ready for JSON."""
        return {**asdict(self), "written": self.written}


@dataclass
class Augmented:
    """rows: the new ones, each with the place of the original that it was made from."""

    rows: list[Row] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def augment(
    rows: Sequence[Row],
    write: Write,
    settings: AugmentSettings | None = None,
    agrees: Agrees | None = None,
) -> Augmented:
    """New rows for labelled ones.

    write: prompts -> what follows each, as long as it likes: the first line counts. agrees: (texts,
    labels) -> probability of each label, 0..1; None = nothing is checked. Raises UserError for
    a template without {label} or {text}, and without rows.
    """
    settings = settings or AugmentSettings()
    asked = prompts(rows, settings)
    texts = write([prompt for _, prompt in asked])
    if len(texts) != len(asked):
        raise ValueError(f"{len(asked)} prompts were given, {len(texts)} texts came back")
    places = [place for place, _ in asked]
    return sift(rows, list(zip(places, texts, strict=True)), settings, agrees)


def prompts(rows: Sequence[Row], settings: AugmentSettings) -> list[tuple[int, str]]:
    """``per_example`` prompts for each row, with its place; the seed decides which examples stand
    in one."""
    if not rows:
        raise UserError("there are no rows to make more of")
    head = _head(settings.template)
    by_label: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_label.setdefault(row.label, []).append(place)
    found = []
    for place, row in enumerate(rows):
        others = [each for each in by_label[row.label] if each != place]
        for copy in range(settings.per_example):
            draw = np.random.default_rng([settings.seed, place, copy])
            count = min(len(others), settings.examples - 1)
            drawn = [others[i] for i in draw.permutation(len(others))[:count]]
            lines = [_line(rows[each], settings.template) for each in [*drawn, place]]
            found.append((place, "\n".join([*lines, head.replace("{label}", row.label)])))
    return found


def sift(
    rows: Sequence[Row],
    written: Iterable[tuple[int, str]],
    settings: AugmentSettings,
    agrees: Agrees | None = None,
) -> Augmented:
    """Of what was written for some rows, by their places: what is new and fits its label."""
    seen, out = Seen(settings.likeness), Augmented()
    for row in rows:
        seen.add(row.text)
    fresh: list[tuple[int, str]] = []
    for place, text in written:
        out.report.asked += 1
        line = cleaned(text, rows[place].label, settings.template)
        if len(normalized(line).split()) < settings.least_words:
            out.report.empty += 1
        elif seen.holds(line):
            out.report.duplicate += 1
        else:
            seen.add(line)
            fresh.append((place, line))
    labels = [rows[place].label for place, _ in fresh]
    sure = [1.0] * len(fresh) if agrees is None else agrees([text for _, text in fresh], labels)
    for (place, text), label, probability in zip(fresh, labels, sure, strict=True):
        if agrees is not None and probability < settings.threshold:
            out.report.inconsistent += 1
            continue
        out.rows.append(Row(text, label))
        out.sources.append(place)
    out.report.kept = len(out.rows)
    return out


def cleaned(text: str, label: str, template: str = TEMPLATE) -> str:
    """The first line that holds something, without the label before it, quotes around it, marks of
    a list, and what cannot be printed."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    line = next((each for each in lines if each), "")
    head = " ".join(_head(template).replace("{label}", label).split())
    line = line.removeprefix(head).strip()
    line = re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", line)
    line = "".join(each for each in line if each.isprintable())
    return line.strip().strip("\"'“”‘’").strip()


def word_dropout(text: str, rate: float, rng: np.random.Generator) -> str:
    """The plain baseline: each word is left out with this chance; one word at least stays (word
    dropout, Iyyer et al. 2015). rate: 0..1, else ValueError."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    words = text.split()
    if not words:
        return text
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= rate]
    return " ".join(kept or [words[int(rng.integers(len(words)))]])


def _line(row: Row, template: str) -> str:
    return template.replace("{label}", row.label).replace("{text}", " ".join(row.text.split()))


def _head(template: str) -> str:
    """What stands before the text in a line of a prompt."""
    if template.count("{label}") != 1 or template.count("{text}") != 1:
        raise UserError(f"template: found {template!r}; it needs {{label}} and {{text}}, once each")
    head, _, _ = template.partition("{text}")
    if "{label}" not in head:
        raise UserError(f"template: found {template!r}; {{label}} must stand before {{text}}")
    return head.rstrip()
