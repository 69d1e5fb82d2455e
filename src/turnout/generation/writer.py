"""Write texts with a model: batches, streaming, an interrupt, and what each answer cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList

from turnout.errors import UserError
from turnout.generation.dials import dialled, routing_of
from turnout.generation.opening import open_model
from turnout.generation.settings import WriteSettings, generation_config
from turnout.generation.streams import Halt, OnText, Pieces, Stream
from turnout.generation.work import Work
from turnout.train.precision import moved

Stop = Literal["end", "length", "stop", "interrupted"]
UNBOUNDED = 10**9  # what tokenizers say that know no length is larger still


@dataclass(frozen=True)
class Written:
    """One answer. prompt: its place among the prompts. ids: its tokens, an end token left out.
    tokens: how many there are. seconds: from the start of its batch to its last token. share: of
    the routed work of the host, over all passes that it took part in, 0..1. stop: why it ends: the
    model's end token, the most tokens, a stop string, or an interrupt. layers: by site key, the
    share of its tokens (those of the prompt included) that ran there."""

    prompt: int
    text: str
    ids: tuple[int, ...]
    tokens: int
    seconds: float
    share: float
    stop: Stop
    layers: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What it cost, ready for JSON."""
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "share": round(self.share, 4),
            "stop": self.stop,
        }


class Writer:
    """A model that writes, put into eval mode, and its tokenizer. ``Writer.open`` makes one of
    a folder or a name."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self._asked = threading.Event()
        self._before = self._first_ids()

    @classmethod
    def open(cls, name: str | Path, device: str | None = None) -> Writer:
        """See ``open_model`` for what can be opened. device: as torch names it; None = the GPU
        where there is one."""
        model, tokenizer = open_model(name)
        return cls(moved(model, device), tokenizer)

    def stop(self) -> None:
        """End the answers under way after the token that is being written; what was written is
        kept. Where nothing is written, the next call writes nothing. May be called by a signal
        handler, or another thread."""
        self._asked.set()

    def resume(self) -> None:
        """Forget a ``stop`` that came when nothing was written any more."""
        self._asked.clear()

    @property
    def context(self) -> int | None:
        """Tokens that the model can read, of decoders together with what they write; None = no
        bound is known. Tokenizers of decoders often name a bound of training, which is passed
        over where the model has positions for more."""
        config: Any = self.model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None)
        bounds = [n for n in (most, self.tokenizer.model_max_length) if isinstance(n, int)]
        found = min((n for n in bounds if 0 < n < UNBOUNDED), default=None)
        return most if most and not self._pairs else found

    @property
    def _pairs(self) -> bool:
        """Does an encoder read the prompt."""
        return bool(self.model.config.is_encoder_decoder)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a prompt. special: with those that the tokenizer puts before a text; what it
        puts after one stays out, of a text that goes on."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # half characters cannot be read
        if self._pairs:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*self._before, *ids] if special else ids

    def write(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: WriteSettings | None = None,
        on_text: OnText | None = None,
        *,
        samples: int = 1,
        batch: int = 16,
    ) -> list[Written]:
        """Go on with each prompt (a text, or token ids). Of an encoder-decoder: answer it.

        samples: answers to a prompt, that stand together in the result. batch: answers at once.
        on_text(answer, piece) is told of text as it is written (of beams, at the end). With a seed,
        the same call writes the same texts; another batch size draws others. An interrupt (see
        ``stop``) ends all answers; prompts that were not begun are left out of the result.

        Raises UserError: an empty prompt, one that leaves no room in the context, or a dial that
        the model does not have.
        """
        settings = settings or WriteSettings()
        ids = [self.encode(p) if isinstance(p, str) else list(p) for p in prompts]
        self._check(ids)
        found: list[Written] = []
        at_once = max(1, batch // samples)
        try:
            with dialled(self.model, settings):
                for first in range(0, len(ids), at_once):
                    if self._asked.is_set():
                        break
                    part = ids[first : first + at_once]
                    tell = _shifted(on_text, first * samples)
                    found += self._batch(part, first, settings, samples, tell)
        finally:
            self._asked.clear()
        return found

    @torch.inference_mode()
    def _batch(
        self,
        prompts: list[list[int]],
        first: int,
        settings: WriteSettings,
        samples: int,
        on_text: OnText | None,
    ) -> list[Written]:
        answers = len(prompts) * samples
        rows = [Pieces(self.tokenizer, settings.stop) for _ in range(answers)]
        stream = Stream(rows, self._ends(), on_text)
        by_beams = settings.beams > 1
        halt = Halt([] if by_beams else rows, self._asked.is_set)
        inputs = self._padded(prompts)
        longest = inputs["input_ids"].shape[1]
        config = generation_config(
            settings, self.model.generation_config, self._room(longest), samples
        )
        work = Work(len(prompts), samples, settings.beams)
        routing, start = routing_of(self.model), time.perf_counter()
        options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([halt])}
        if not by_beams:
            options["streamer"] = stream
        model: Any = self.model
        if routing is None:
            ids = model.generate(**inputs, generation_config=config, **options)
        else:
            with routing.watched(work.see):
                ids = model.generate(**inputs, generation_config=config, **options)
        seconds = time.perf_counter() - start
        written_AT = ids[:, 1 if self._pairs else longest :].cpu()
        if by_beams:
            self._tell_whole(stream, written_AT)
        found = []
        for place, row in enumerate(rows):
            took, stop = self._reason(row, stream.over[place], written_AT[place], halt)
            found.append(
                Written(
                    prompt=first + place // samples,
                    text=row.text,
                    ids=tuple(row.ids),
                    tokens=len(row.ids),
                    seconds=seconds if by_beams else halt.times[took - 1],
                    share=work.share(place, took),
                    stop=stop,
                    layers=work.layers(place, took),
                )
            )
        return found

    def _reason(self, row: Pieces, over: bool, ids_T: Tensor, halt: Halt) -> tuple[int, Stop]:
        """How many steps an answer took, and why it ended."""
        if row.stopped:
            return max(1, len(row.ids)), "stop"
        if over:
            return len(row.ids) + 1, "end"
        steps = max(1, min(len(ids_T), len(halt.times)))
        return steps, "interrupted" if halt.stopped_early else "length"

    def _tell_whole(self, stream: Stream, written_AT: Tensor) -> None:
        stream.prompt_is_next = False
        for ids_A in written_AT.T:
            stream.put(ids_A)
        stream.end()

    def _ends(self) -> set[int]:
        """Tokens that end a text."""
        end: Any = self.model.generation_config.eos_token_id
        found = end if isinstance(end, list) else [end]
        return {int(each) for each in found if each is not None}

    def _padded(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """ids and mask of a batch, (B, T): what a decoder goes on from is padded on the left."""
        length, pad = max(map(len, prompts)), int(self.tokenizer.pad_token_id)
        ids, mask = [], []
        for prompt in prompts:
            empty = length - len(prompt)
            padding, real = [pad] * empty, [1] * len(prompt)
            ids.append(prompt + padding if self._pairs else padding + prompt)
            mask.append(real + [0] * empty if self._pairs else [0] * empty + real)
        device = self.model.device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }

    def _room(self, longest: int) -> int:
        """Tokens that can be written after prompts of this length."""
        context = self.context
        return UNBOUNDED if context is None else context if self._pairs else context - longest

    def _check(self, prompts: list[list[int]]) -> None:
        context = self.context
        most = context if context is None or self._pairs else context - 1
        for place, ids in enumerate(prompts):
            if not ids:
                raise UserError(f"prompt {place + 1} is empty: give at least a word to go on from")
            if most is not None and len(ids) > most:
                raise UserError(
                    f"prompt {place + 1} has {len(ids):,} tokens, but the model reads {context:,}, "
                    "what it writes included: cut the prompt"
                )

    def _first_ids(self) -> list[int]:
        """The tokens that the tokenizer puts before a text."""
        for sample in ("a", "the"):
            bare = list(self.tokenizer(sample, add_special_tokens=False)["input_ids"])
            full = list(self.tokenizer(sample)["input_ids"])
            for at in range(len(full) - len(bare) + 1):
                if bare and full[at : at + len(bare)] == bare:
                    return full[:at]
        return []


def _shifted(on_text: OnText | None, by: int) -> OnText | None:
    """Counts answers over all batches."""
    return None if on_text is None else lambda place, piece: on_text(place + by, piece)
