"""The chat in a terminal: read a line, stream an answer, go on until told to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from turnout.errors import UserError
from turnout.generation import commands
from turnout.generation.chat import Chat
from turnout.generation.writer import Writer, Written

PROMPT = "you> "
ANSWER = "model> "


def talk(chat: Chat) -> None:
    """Chat on standard input and output until its end, Ctrl-C at the prompt, or /quit. A mistake is
    told, and the chat goes on."""
    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(AttributeError, OSError):  # not a text stream of a file
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    asks = sys.stdin.isatty()
    if asks:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lines can be edited, and be longer than 4,096 bytes
        _say("Type a message, or /help.")
    while (line := _read(asks)) is not None:
        line = line.strip()
        if not line:
            continue
        try:
            if not _obeyed(chat, line):
                return
        except UserError as error:
            _say(f"error: {error}")


def _obeyed(chat: Chat, line: str) -> bool:
    """Carry out a line; False where it ends the chat."""
    if not commands.is_command(line):
        _answer(
            chat,
            lambda tell: chat.answer(
                line.replace("//", "/", 1) if line[:2] == "//" else line, tell
            ),
        )
        return True
    name, rest = commands.split(line)
    if name == "quit":
        return False
    if name == "regenerate":
        _answer(chat, chat.again)
    else:
        _say(commands.COMMANDS[name].does(chat, rest))
    return True


def _answer(chat: Chat, ask: Callable[[Any], tuple[Written, list[str]]]) -> None:
    sys.stdout.write(ANSWER)
    sys.stdout.flush()
    try:
        with interruptible(chat.writer):
            written, notes = ask(lambda place, piece: _write(piece))
    except BaseException:
        sys.stdout.write("\n")
        raise
    sys.stdout.write("\n")
    for note in notes:
        _say(f"note: {note}")
    _say(facts_line(written))


def facts_line(written: Written) -> str:
    """What an answer cost, for people."""
    share = f", {written.share * 100:.0f} % of the routed work" if written.layers else ""
    why = {"length": ", cut at the most tokens", "interrupted": ", interrupted"}
    return f"[{written.tokens} tokens, {written.seconds:.2f} s{share}{why.get(written.stop, '')}]"


@contextlib.contextmanager
def interruptible(writer: Writer) -> Iterator[None]:
    """Inside, Ctrl-C stops the writing after the token under way; a second one raises
    KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        writer.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        writer.resume()


def printable(text: str) -> str:
    """Without characters that would steer a terminal."""
    return "".join(each for each in text if each in "\n\t" or each.isprintable())


def _read(asks: bool) -> str | None:
    """The next line; None at the end."""
    try:
        if asks:
            return input(PROMPT)
        return sys.stdin.readline() or None
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None


def _write(piece: str) -> None:
    sys.stdout.write(printable(piece))
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()
