"""What all commands print with: their own voice on standard error, results on standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console


def stderr() -> Console:
    """For people."""
    return Console(stderr=True, soft_wrap=True)


def stdout() -> Console:
    """Wide enough for our tables where nobody looks: in files and pipes."""
    return Console(width=None if sys.stdout.isatty() else 140)


def bars(quiet: bool) -> bool:
    """Are progress bars drawn."""
    return not quiet and sys.stderr.isatty()


def sayer(quiet: bool) -> Any:
    """Prints to standard error, above a progress bar that may be there."""

    def say(text: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            stderr().print(text, markup=False)

    return (lambda text: None) if quiet else say


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def calm() -> None:
    """The libraries below keep their notes and bars to themselves; ours say what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # it tells of each retry
