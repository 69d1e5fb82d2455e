"""A chat with a model: what was said, how it is written, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.errors import UserError
from turnout.generation.dials import dialled
from turnout.generation.history import History
from turnout.generation.prompting import Prompts
from turnout.generation.settings import WriteSettings
from turnout.generation.stored import Stored, shown_with
from turnout.generation.streams import OnText
from turnout.generation.writer import Writer, Written


class Chat:
    """One chat. history_file: written anew after every answer, and read at the start when it is
    there; a damaged one is refused and stays as it is. stored: answers to show with a question.

    Raises UserError for settings that the model does not have, and for a damaged history file.
    """

    def __init__(
        self,
        writer: Writer,
        settings: WriteSettings | None = None,
        *,
        system: str = "",
        history_file: str | Path | None = None,
        stored: Stored | None = None,
    ) -> None:
        self.writer, self.stored = writer, stored
        self.prompts = Prompts(writer)
        self.settings = WriteSettings()
        self.set(**(settings or WriteSettings()).model_dump())
        self.history_file = None if history_file is None else Path(history_file)
        self.history = History(system)
        if self.history_file is not None and self.history_file.exists():
            self.history = History.load(self.history_file)
            if system:
                self.history.system = system
        self.last: Written | None = None
        self._attempt = 0

    def set(self, **fields: Any) -> None:
        """Write with other settings from here on. Raises UserError, and changes nothing, for values
        that are not allowed and dials that the model does not have."""
        settings = self.settings.but(**fields)
        with dialled(self.writer.model, settings):
            self.settings = settings

    def answer(
        self, question: str, on_text: OnText | None = None, attempt: int = 0
    ) -> tuple[Written, list[str]]:
        """Answer a question, keep both, and save; notes say what was left out of the prompt.
        attempt: with a seed, each one draws by another."""
        found = [] if self.stored is None else self.stored.nearest(question)
        shown = shown_with(found)
        prompt, notes = self.prompts.of(self.history, question, shown, self.settings.max_new_tokens)
        settings = self.settings.but(stop=(*self.settings.stop, *self.prompts.stops))
        if settings.seed is not None:
            settings = settings.but(seed=settings.seed + attempt)
        answers = self.writer.write([prompt], settings, on_text)
        if not answers:
            raise UserError("interrupted before anything was written")
        (written,) = answers
        self.history.add("user", question, shown=shown)
        self.history.add("assistant", written.text.strip(), facts=written.facts())
        self.last, self._attempt = written, attempt
        self.keep()
        return written, notes

    def again(self, on_text: OnText | None = None) -> tuple[Written, list[str]]:
        """Another answer in the place of the last one."""
        before = list(self.history.turns)
        question = self.history.take_back()
        try:
            return self.answer(question, on_text, self._attempt + 1)
        except BaseException:
            self.history.turns = before
            raise

    def keep(self) -> None:
        """Save the history, where a file was named."""
        if self.history_file is not None:
            self.history.save(self.history_file)

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.history.turns, self.last = [], None
        self.keep()

    def load(self, path: str) -> None:
        """Go on with another history. Raises UserError for a damaged file."""
        self.history, self.last = History.load(path), None
        self.keep()

    def route(self) -> str:
        """Which layers ran for the last answer, a row a layer. Raises UserError where there was no
        answer, or no router."""
        if self.last is None:
            raise UserError("nothing was answered yet")
        if not self.last.layers:
            raise UserError("this model has no routers: every layer ran for every token")
        return route_rows(self.last.layers)


def route_rows(layers: dict[str, float], width: int = 30) -> str:
    """By site key, the share of tokens that ran, 0..1, as rows of text with a bar."""
    longest = max(map(len, layers))
    rows = []
    for key, share in layers.items():
        bar = "#" * round(min(1.0, share) * width)
        rows.append(f"{key:<{longest}}  {bar:.<{width}}  {share * 100:5.1f} %")
    return "\n".join(["share of tokens that ran, read and written", *rows])
