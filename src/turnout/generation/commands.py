"""What can be said to a chat that is not for the model: lines that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from turnout.errors import UserError
from turnout.generation.chat import Chat

Do = Callable[[Chat, str], str]


@dataclass(frozen=True)
class Command:
    """usage: what follows its name. does: given the rest of the line, what to print."""

    usage: str
    about: str
    does: Do


def is_command(line: str) -> bool:
    """Two slashes begin a message that begins with one."""
    return line.startswith("/") and not line.startswith("//")


def split(line: str) -> tuple[str, str]:
    """Name and rest. Raises UserError for an unknown name; the message lists near ones."""
    name, _, rest = line[1:].strip().partition(" ")
    name = name.lower()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'/{each}' for each in near)}? " if near else ""
        raise UserError(f"unknown command /{name[:40]}; {hint}/help lists them all")
    return name, rest.strip()


def _help(chat: Chat, rest: str) -> str:
    rows = [(f"/{name} {each.usage}".strip(), each.about) for name, each in COMMANDS.items()]
    wide = max(len(usage) for usage, _ in rows)
    return "\n".join(f"{usage:<{wide}}  {about}" for usage, about in rows)


def _number(name: str) -> Do:
    """A command that sets a setting which is a number."""

    def does(chat: Chat, rest: str) -> str:
        if rest:
            chat.set(**{name: None if rest == "off" else _float(name, rest)})
        return f"{name}: {_said(getattr(chat.settings, name))}"

    return does


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name}: found {text[:40]!r}; give a number, or off") from None


def _said(value: object) -> str:
    return "as the model has it" if value is None else str(value)


def _seed(chat: Chat, rest: str) -> str:
    if rest == "off":
        chat.set(seed=None)
    elif rest:
        if not rest.isdecimal():
            raise UserError(f"seed: found {rest[:40]!r}; give a whole number, or off")
        chat.set(seed=int(rest))
    return f"seed: {'off' if chat.settings.seed is None else chat.settings.seed}"


def _save(chat: Chat, rest: str) -> str:
    chat.history.save(_file(rest))
    return f"saved: {rest}"


def _load(chat: Chat, rest: str) -> str:
    chat.load(_file(rest))
    return f"{len(chat.history.turns) // 2} exchange(s) loaded"


def _file(rest: str) -> str:
    if not rest:
        raise UserError("name a file")
    return rest


def _history(chat: Chat, rest: str) -> str:
    said = [f"system: {chat.history.system}"] if chat.history.system else []
    said += [f"{turn.role}: {turn.text}" for turn in chat.history.turns]
    return "\n".join(said) or "nothing was said yet"


def _reset(chat: Chat, rest: str) -> str:
    chat.reset()
    return "forgotten; the system text stays" if chat.history.system else "forgotten"


def _system(chat: Chat, rest: str) -> str:
    if rest:
        chat.history.system = "" if rest == "off" else rest
        chat.keep()
    return f"system: {chat.history.system or '(none)'}"


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", _help),
    "budget": Command("X", "share of the routed work to spend, above 0 to 1", _number("budget")),
    "noise": Command("X", "scale of trained noise, 0 is none", _number("noise")),
    "seed": Command("N|off", "repeat draws and paths", _seed),
    "temperature": Command("X", "of sampling", _number("temperature")),
    "top-p": Command("X", "share of probability to draw from", _number("top_p")),
    "route": Command("", "which layers ran for the last answer", lambda chat, rest: chat.route()),
    "save": Command("FILE", "write what was said", _save),
    "load": Command("FILE", "go on with what was said there", _load),
    "history": Command("", "what was said", _history),
    "reset": Command("", "forget what was said", _reset),
    "system": Command("TEXT|off", "a text that stays before all that is said", _system),
    "regenerate": Command("", "another answer to the last question", lambda chat, rest: ""),
    "quit": Command("", "end (so does Ctrl-D, and Ctrl-C at the prompt)", lambda chat, rest: ""),
}
