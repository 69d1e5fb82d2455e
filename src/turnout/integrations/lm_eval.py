"""Routed models in EleutherAI's lm-evaluation-harness, at a budget.

``python -m turnout.integrations.lm_eval`` is lm-eval's own command line, with one more model name:
``turnout``. The harness looks for models in its own package alone, so that somebody has to tell it.

    python -m turnout.integrations.lm_eval run --model turnout \
        --model_args pretrained=RUN,budget=0.5 --tasks hellaswag
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turnout.errors import UserError

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError:
    raise UserError("lm-eval is not installed: pip install 'turnout[eval]'") from None

from turnout.execute.likelihood import log_likelihood
from turnout.tasks.language import collate
from turnout.train.precision import moved
from turnout.train.saving import load, load_tokenizer

Request = tuple[tuple[str, str] | None, list[int], list[int]]
BATCH_TOKENS = 4096
Harness: Any = HFLM  # its decorator hides its type


@register_model("turnout")
class RoutedLM(Harness):
    """A routed model as the harness wants it; arguments of ``--model_args``.

    pretrained: a run folder, a folder of a saved routed model, or the model itself. budget: share
    of the routed work that may be spent; None = as the model was saved. noise_scale: of trained
    noise; None = as it was saved. seed: of random routers and noise; the same for the same text.
    batch_tokens: of a batch that is scored, padding included. Others go
    to the harness's ``HFLM``.

    Texts are scored with a mask and by their last states, so a text has the score that it has alone
    (HFLM pads without a mask, which random routers would take for text), and the logits of a whole
    batch are never held. Raises UserError for a folder without a routed model, a budget outside
    0..1, and a model that does not write on.
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        budget: float | None = None,
        noise_scale: float | None = None,
        seed: int | None = 0,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        batch_tokens: int = BATCH_TOKENS,
        **kwargs: Any,
    ) -> None:
        model: Any = pretrained
        if isinstance(pretrained, str | Path):
            wanted = {} if dtype in (None, "auto") else {"dtype": _dtype(dtype)}
            model = moved(load(pretrained, **wanted), device)
            folder = Path(pretrained)
            inner = folder / "routed"
            tokenizer = tokenizer or load_tokenizer(inner if inner.is_dir() else folder)
        if not hasattr(model, "turnout"):
            raise UserError("this model is not routed; give lm-eval --model hf for plain ones")
        if budget is not None:
            model.turnout.budget = budget
        if noise_scale is not None:
            model.turnout.noise_scale = noise_scale
        model.turnout.seed = seed
        model.turnout.check_writes()
        self.batch_tokens = int(batch_tokens)
        super().__init__(pretrained=model, tokenizer=tokenizer, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log probability, is it what greedy search would write) of each continuation."""
        rows = [self._row(context, wanted) for _, context, wanted in requests]
        pad = self.tokenizer.pad_token_id or 0
        found = log_likelihood(
            self.model, rows, lambda some: collate(some, pad), self.batch_tokens, ahead=True
        )
        answers = [(float(total), int(right) == int(count)) for total, count, right in found.logits]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:  # windows of a rolling likelihood are noted by their sum
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _row(self, context: list[int], wanted: list[int]) -> dict[str, list[int]]:
        """What is read, cut on the left where it is too long, and what is to come of each token."""
        ids = (context + wanted)[-(self.max_length + 1) :]
        count = len(ids) - 1
        labels = [-100] * (count - len(wanted)) + wanted[-count:]
        return {"input_ids": ids[:-1], "attention_mask": [1] * count, "labels": labels}


def _dtype(name: str | torch.dtype | None) -> torch.dtype:
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"dtype {name!r}: torch knows no such type; use float32 or bfloat16")
    return found


if __name__ == "__main__":
    cli_evaluate()
