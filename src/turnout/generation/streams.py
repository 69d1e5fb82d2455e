"""Text as it is written: pieces of whole characters, stop strings, and a way to interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

OnText = Callable[[int, str], None]
BROKEN = "\ufffd"  # what a decoder shows for a character whose tokens are not all there yet


class Pieces:
    """The text of one answer, token by token. Each token is decoded with few before it, so that a
    long text takes linear work."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
        self.ids: list[int] = []
        self.text, self.shown = "", 0
        self.stopped = False
        self._from = self._read = 0  # tokens before `_read` are in the text

    def add(self, token: int) -> str:
        """Take a token; the new text that can be shown, which may be nothing yet."""
        if self.stopped:
            return ""
        self.ids.append(token)
        before = self._decoded(self.ids[self._from : self._read])
        now = self._decoded(self.ids[self._from :])
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self.text += now[len(before) :]
        self._from, self._read = self._read, len(self.ids)
        return self._show(self._settled())

    def end(self) -> str:
        """What was held back, once no token follows."""
        if not self.stopped:
            before = self._decoded(self.ids[self._from : self._read])
            self.text += self._decoded(self.ids[self._from :])[len(before) :]
            self._settled()
        return self._show(len(self.text))

    def _settled(self) -> int:
        """Cut the text at a stop string; up to where it can be shown, since no stop string may
        begin before that."""
        longest = max(map(len, self.stop), default=0)
        ahead = max(0, self.shown - longest)
        places = [at for stop in self.stop if (at := self.text.find(stop, ahead)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
            return len(self.text)
        for held in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-held:]) for stop in self.stop):
                return len(self.text) - held
        return len(self.text)

    def _show(self, to: int) -> str:
        piece, self.shown = self.text[self.shown : to], max(self.shown, to)
        return piece

    def _decoded(self, ids: list[int]) -> str:
        # nothing is cleaned up: what was shown must not change when more follows
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Stream(BaseStreamer):
    """Takes tokens from ``generate`` and tells pieces of text; one row an answer."""

    def __init__(self, rows: Sequence[Pieces], ends: set[int], on_text: OnText | None) -> None:
        self.rows, self.ends, self.on_text = rows, ends, on_text
        self.over = [False] * len(rows)
        self.prompt_is_next = True

    def put(self, value: Tensor) -> None:
        """The prompts first, then a token of each row."""
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        for place, token in enumerate(value.flatten().tolist()):
            if self.over[place]:
                continue  # padding after its end
            if token in self.ends:
                self.over[place] = True
                continue
            self.tell(place, self.rows[place].add(token))
            self.over[place] = self.rows[place].stopped

    def end(self) -> None:
        """No more tokens."""
        for place, row in enumerate(self.rows):
            self.tell(place, row.end())

    def tell(self, place: int, piece: str) -> None:
        """Pass a piece on."""
        if piece and self.on_text is not None:
            self.on_text(place, piece)


class Halt(StoppingCriteria):
    """Ends rows whose text has a stop string, and all of them when asked to; notes the time of
    every step, in seconds since the start."""

    def __init__(self, rows: Sequence[Pieces], asked: Callable[[], bool]) -> None:
        self.rows, self.asked = rows, asked
        self.stopped_early = False
        self.start = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Bool, one a row: is it done."""
        self.times.append(time.perf_counter() - self.start)
        if self.asked():
            self.stopped_early = True
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if len(self.rows) != len(input_ids):  # beams, whose texts change
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        # tokens reach the text one call later, so the newest is read from here
        done = [row.stopped or self._ends(row, input_ids[i, -1]) for i, row in enumerate(self.rows)]
        return torch.tensor(done, device=input_ids.device)

    @staticmethod
    def _ends(row: Pieces, token: Tensor) -> bool:
        """Would this token complete a stop string."""
        if not row.stop:
            return False
        tail = [*row.ids[row._from :], int(token)]
        near = row.text[max(0, len(row.text) - max(map(len, row.stop))) :]
        before = row._decoded(row.ids[row._from : row._read])
        return any(stop in near + row._decoded(tail)[len(before) :] for stop in row.stop)
