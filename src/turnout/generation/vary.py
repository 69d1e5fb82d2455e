"""`turnout vary`: does a way of making texts differ cost quality, and how much.

Every arm writes several texts for each prompt. Quality is the perplexity of the texts under the
dense host; diversity is measured among the texts of a prompt, and averaged over prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from turnout.errors import UserError
from turnout.files import read_json, write_text
from turnout.generation import variety
from turnout.generation.arms import DROPOUT, Arm, dropping
from turnout.generation.perplexity import surprise
from turnout.generation.settings import WriteSettings
from turnout.generation.writer import Writer, Written

FORMAT = 1
DRAWS = 1000  # of the bootstrap over prompts
Encode = Callable[[Sequence[str]], np.ndarray]


class Measured(BaseModel):
    """A number with its 95 % interval, by bootstrap over prompts."""

    value: float
    low: float
    high: float


class VaryRow(BaseModel):
    """An arm. perplexity: of what was written, under the dense host. diversity: by the name of a
    measure (see ``turnout.generation.variety``). share: of the routed work. seconds and tokens: a
    text, mean. texts: how many there were."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    value: float
    perplexity: Measured
    diversity: dict[str, Measured]
    share: float
    seconds: float
    tokens: float
    texts: int


class VaryResults(BaseModel):
    """What ``turnout vary`` writes. settings: a hash of all that must be the same for rows to stand
    side by side."""

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    model: str
    prompts: int
    samples: int
    settings: str
    rows: list[VaryRow] = []

    def row(self, arm: Arm) -> VaryRow | None:
        """That of an arm, if it is there."""
        return next((r for r in self.rows if (r.kind, r.value) == (arm.kind, arm.value)), None)

    def save(self, path: str | Path) -> None:
        """Whole, or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


def begin(
    path: Path, model: str, prompts: Sequence[str], samples: int, plain: WriteSettings
) -> VaryResults:
    """Empty results, or those of an earlier call to go on with. Raises UserError for a file that is
    damaged, or holds something else."""
    decides = [model, list(prompts), samples, plain.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    if not path.exists():
        return VaryResults(model=model, prompts=len(prompts), samples=samples, settings=digest)
    try:
        found = VaryResults.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: not results of `turnout vary` ({first['loc']}: {first['msg']}); choose "
            "another --out"
        ) from None
    if (found.format, found.settings) != (FORMAT, digest):
        raise UserError(
            f"{path} holds results of another model, other prompts or other settings: choose "
            "another --out, or remove it"
        )
    return found


def measure_arm(
    writer: Writer,
    prompts: Sequence[str],
    samples: int,
    plain: WriteSettings,
    arm: Arm,
    encode: Encode | None = None,
    batch: int = 16,
) -> VaryRow | None:
    """Write and measure one arm; None after an interrupt. encode: texts to vectors (N, D), for
    the spread of embeddings. batch: texts at once. Raises UserError for a dial that the model does
    not have."""
    kept = dropping(writer.model, arm.value) if arm.kind == DROPOUT else nullcontext()
    with kept:
        written = writer.write(prompts, arm.settings(plain), samples=samples, batch=batch)
    if len(written) < len(prompts) * samples or any(w.stop == "interrupted" for w in written):
        return None
    by_prompt = [[w for w in written if w.prompt == p] for p in range(len(prompts))]
    ids = [writer.encode(prompt) for prompt in prompts]
    judged = surprise(writer, [(ids[w.prompt], w.ids) for w in written if w.ids])
    places = [w.prompt for w in written if w.ids]
    counts_PK = np.zeros((len(prompts), 2))
    for place, (loss, tokens) in zip(places, judged, strict=True):
        counts_PK[place] += (loss, tokens)
    return VaryRow(
        kind=arm.kind,
        value=arm.value,
        perplexity=_perplexity(counts_PK),
        diversity=_diversity(by_prompt, len(writer.tokenizer), encode),
        share=float(np.mean([w.share for w in written])),
        seconds=float(np.mean([w.seconds for w in written])),
        tokens=float(np.mean([w.tokens for w in written])),
        texts=len(written),
    )


def _perplexity(counts_PK: np.ndarray) -> Measured:
    """From summed losses and numbers of tokens by prompt, (P, 2)."""
    from turnout.measure.stats import bootstrap_interval

    if not counts_PK[:, 1].any():
        raise UserError("nothing was written: every text ended at once")
    counts_PK = counts_PK[counts_PK[:, 1] > 0]
    found = bootstrap_interval(counts_PK, lambda t: float(np.exp(t[0] / t[1])), DRAWS)
    return Measured(value=found.value, low=found.low, high=found.high)


def _diversity(
    by_prompt: Sequence[Sequence[Written]], vocabulary: int, encode: Encode | None
) -> dict[str, Measured]:
    """Every measure, as the mean over prompts."""
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for answers in by_prompt:
        texts = [each.text for each in answers]
        note("distinct_1", variety.distinct(texts, 1))
        note("distinct_2", variety.distinct(texts, 2))
        note("expected_distinct", variety.expected_distinct(texts, vocabulary))
        note("entropy_2", variety.entropy(texts, 2))
        note("compression", variety.compression(texts))
        note("repetition_4", float(np.mean([variety.repetition(text) for text in texts])))
        if len(texts) > 1:
            note("self_bleu", variety.self_bleu(texts))
            if encode is not None:
                note("spread", variety.spread(encode(texts)))
    return {name: _mean(values) for name, values in rows.items()}


def _mean(values: Sequence[float]) -> Measured:
    from turnout.measure.stats import bootstrap_interval

    counts_NK = np.array([[value, 1.0] for value in values])
    found = bootstrap_interval(counts_NK, lambda t: float(t[0] / t[1]), DRAWS)
    return Measured(value=found.value, low=found.low, high=found.high)
