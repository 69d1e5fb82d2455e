"""What was said in a chat: turns, and the file that keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from turnout.errors import UserError
from turnout.files import read_json, write_json

FORMAT = 1
Role = Literal["user", "assistant"]


class Turn(BaseModel):
    """One thing that was said. facts: of an answer: tokens, seconds, share of the routed work, and
    why it ended. shown: text of stored answers that the model was shown with a question."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    text: str
    facts: dict[str, Any] = {}
    shown: str = ""


class _Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    system: str
    turns: list[Turn]


@dataclass
class History:
    """A system text, which stays, and turns: each of the user's with the answer to it."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def add(self, role: Role, text: str, **more: Any) -> None:
        """Say something."""
        self.turns.append(Turn(role=role, text=text, **more))

    def take_back(self) -> str:
        """Forget the last answer and its question, which is returned. Raises UserError where there
        is none."""
        if len(self.turns) < 2:
            raise UserError("nothing was answered yet")
        question = self.turns[-2].text
        del self.turns[-2:]
        return question

    def save(self, path: str | Path) -> None:
        """Write it all, as a whole file or not at all."""
        turns = [turn.model_dump() for turn in self.turns]
        write_json(path, {"format": FORMAT, "system": self.system, "turns": turns})

    @classmethod
    def load(cls, path: str | Path) -> History:
        """A history that was saved. Raises UserError, which names the file, for one that is damaged
        or of another format; the file is left as it is."""
        found = read_json(path)
        try:
            page = _Page.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path}: not the history of a chat ({where or 'whole file'}: {first['msg']}); "
                "mend it, or name another file"
            ) from None
        if page.format != FORMAT:
            raise UserError(f"{path}: format {page.format}; this version reads {FORMAT}")
        roles = [turn.role for turn in page.turns]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise UserError(f"{path}: turns must be of user and assistant, one after the other")
        return cls(page.system, page.turns)
