"""A prompt out of a chat: by the tokenizer's own template, or as a plain transcript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.errors import UserError, first_line
from turnout.generation.history import History, Turn
from turnout.generation.writer import Writer

NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")  # of a transcript, which has no end of a turn
ROLE_COST = 8  # tokens that mark a turn, until they are counted
LEAST = 16  # tokens that are left for a question, at least


class Prompts:
    """Makes prompts that fit the context of a writer. The system text and the newest question stay;
    of earlier turns, as many of the newest as fit. The tokens of a turn are counted once."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.template = bool(getattr(writer.tokenizer, "chat_template", None))
        self._counts: dict[str, int] = {}

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return () if self.template else STOPS

    def of(
        self, history: History, question: str, shown: str, answer_tokens: int
    ) -> tuple[list[int], list[str]]:
        """Token ids to go on from, and notes on what was left out.

        shown: text to be read with the question. answer_tokens: room that an answer should have; it
        gets less where the context is small. Raises UserError for a system text that fills it.
        """
        notes: list[str] = []
        room = self._room(answer_tokens)
        if room is None:
            return self.ids(history.system, history.turns, asked(question, shown)), notes
        left = room - self._cost(history.system) - ROLE_COST
        if left < min(LEAST, room // 2):
            raise UserError(f"the system text leaves no room in a context of {room} tokens")
        if shown and self._cost(question) + self._cost(shown) > left:
            shown = ""
            notes.append("stored answers left out: they do not fit the context")
        question, cut = self._cut(question, left)
        if cut:
            notes.append(f"message cut to its last {left:,} tokens, which fit the context")
        left -= self._cost(asked(question, shown))
        kept = self._newest(history.turns, left)
        ids = self.ids(history.system, kept, asked(question, shown))
        step = 1
        while len(ids) > room and kept:  # marks of the template cost more than was thought
            kept = kept[2 * step :]
            step *= 2
            ids = self.ids(history.system, kept, asked(question, shown))
        if len(ids) > room:
            question, _ = self._cut(question, max(1, self._count(question) - (len(ids) - room) - 2))
            ids = self.ids(history.system, [], asked(question, shown))[-room:]
        if len(kept) < len(history.turns):
            gone = (len(history.turns) - len(kept)) // 2
            notes.append(f"the oldest {gone} exchange(s) left out: they do not fit the context")
        return ids, notes

    def ids(self, system: str, turns: Sequence[Turn], newest: str) -> list[int]:
        """The prompt of some turns and a question."""
        if not self.template:
            return self.writer.encode(transcript(system, turns, newest))
        said = [{"role": t.role, "content": asked(t.text, t.shown)} for t in turns]
        said.append({"role": "user", "content": newest})
        return self.writer.encode(self._templated(system, said), special=False)

    def _templated(self, system: str, said: list[dict[str, str]]) -> str:
        render: Any = self.writer.tokenizer.apply_chat_template
        how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        try:
            if not system:
                return render(said, **how)
            try:
                return render([{"role": "system", "content": system}, *said], **how)
            except Exception:  # templates without a role for it raise errors of their own
                first = {**said[0], "content": f"{system}\n\n{said[0]['content']}"}
                return render([first, *said[1:]], **how)
        except Exception as error:
            raise UserError(f"the tokenizer's chat template fails: {first_line(error)}") from error

    def _room(self, answer_tokens: int) -> int | None:
        """Tokens that a prompt may have."""
        context = self.writer.context
        if context is None or self.writer.model.config.is_encoder_decoder:
            return context
        return max(context - answer_tokens, context // 2)

    def _newest(self, turns: list[Turn], left: int) -> list[Turn]:
        """The newest exchanges that fit."""
        first = len(turns)
        while first >= 2:
            left -= sum(self._cost(asked(t.text, t.shown)) for t in turns[first - 2 : first])
            if left < 0:
                break
            first -= 2
        return turns[first:]

    def _cut(self, text: str, most: int) -> tuple[str, bool]:
        """The end of a text that has too many tokens."""
        if self._cost(text) <= most:
            return text, False
        ids = self.writer.encode(text, special=False)
        return self.writer.tokenizer.decode(ids[-max(1, most - ROLE_COST) :]), True

    def _cost(self, text: str) -> int:
        return self._count(text) + ROLE_COST if text else 0

    def _count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = len(self.writer.encode(text, special=False))
        return self._counts[text]


def asked(question: str, shown: str) -> str:
    """A question as the model reads it, with what is shown beside it."""
    return f"{shown}\n\n{question}" if shown else question


def transcript(system: str, turns: Sequence[Turn], newest: str) -> str:
    """A chat as plain text, up to where the next answer begins."""
    lines = [f"{NAMES['system']}: {system}"] if system else []
    lines += [f"{NAMES[t.role]}: {asked(t.text, t.shown)}" for t in turns]
    return "\n".join([*lines, f"{NAMES['user']}: {newest}", f"{NAMES['assistant']}:"])
