"""The one exception that means: the user can fix this, and the message says how."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input: a recipe field, a data file, a folder, a model name.

    The message names the file, line, field or tensor, what was found, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
