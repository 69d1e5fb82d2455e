"""All arms of `turnout vary`, one after the other, each saved when it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from turnout.errors import UserError
from turnout.generation.arms import arms_of, default_arms
from turnout.generation.progress import progress
from turnout.generation.settings import WriteSettings
from turnout.generation.terminal import interruptible
from turnout.generation.variety import self_bleu
from turnout.generation.vary import Encode, VaryResults, begin, measure_arm
from turnout.generation.writer import Writer
from turnout.train.host import open_language_model, open_tokenizer
from turnout.train.precision import moved

SHOWN = ("distinct_2", "expected_distinct", "self_bleu", "compression", "repetition_4", "spread")


def vary_all(
    model: str,
    prompts: Sequence[str],
    samples: int,
    plain: WriteSettings,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    encoder: str | None = None,
    device: str | None = None,
    drawn: bool = False,
    say: Callable[[str], None] = print,
) -> VaryResults | None:
    """Measure every arm that ``out`` does not have yet, and write it there; None after an
    interrupt. arms: ``kind=value,value`` texts; None = those that fit the model. encoder: name of
    a model whose mean states are the vectors of texts. Raises UserError as the parts do."""
    wanted = None if arms is None else arms_of(arms)  # mistakes before the model is opened
    # an encoder adds a measure, so its rows do not stand beside rows without it
    results = begin(out, f"{model} {encoder or ''}".strip(), prompts, samples, plain)
    self_bleu(["a", "b"])  # is what it needs installed
    writer = Writer.open(model, device)
    chosen = arms_of(default_arms(writer.model)) if wanted is None else wanted
    encode = None if encoder is None else sentence_encoder(encoder, device)
    left = [arm for arm in chosen if results.row(arm) is None]
    if len(left) < len(chosen):
        say(f"{len(chosen) - len(left)} arm(s) are there already")
    with interruptible(writer), progress(len(left), "arms", drawn) as done:
        for count, arm in enumerate(left, 1):
            row = measure_arm(writer, prompts, samples, plain, arm, encode)
            if row is None:
                return None
            results.rows.append(row)
            results.save(out)
            done(count)
    return results


def sentence_encoder(name: str, device: str | None = None) -> Encode:
    """Texts to vectors: the mean of a model's last states over the tokens of a text."""
    model, tokenizer = moved(open_language_model(name).eval(), device), open_tokenizer(name)
    if model.config.is_encoder_decoder:
        raise UserError(f"encoder: {name} is an encoder-decoder; name an encoder")
    most = min(tokenizer.model_max_length, 512)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        # a text of no token would have no mean
        given: Any = [text if text.strip() else "." for text in texts]
        inputs = tokenizer(
            given, padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        inputs = inputs.to(model.device)
        state_BTD = model(**inputs).last_hidden_state.float()
        mask_BT1 = inputs["attention_mask"][..., None].float()
        return ((state_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)).cpu().numpy()

    return encode


def table(results: VaryResults) -> Table:
    """The arms, for people."""
    rows = results.rows
    measures = [name for name in SHOWN if rows and name in rows[0].diversity]
    found = Table(title=f"{results.prompts} prompts, {results.samples} texts each")
    found.add_column("arm")
    for name in ("perplexity", *measures, "share", "tokens"):
        found.add_column(name, justify="right")
    for row in rows:
        values = [f"{row.diversity[name].value:.3f}" for name in measures]
        found.add_row(
            f"{row.kind} {row.value:g}",
            f"{row.perplexity.value:.2f} [{row.perplexity.low:.2f}, {row.perplexity.high:.2f}]",
            *values,
            f"{row.share:.2f}",
            f"{row.tokens:.1f}",
        )
    return found
