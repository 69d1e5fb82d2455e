"""A named table of entries with an error that lists what exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from turnout.errors import UserError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Names to entries, in the order of addition."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Add an entry; a name that is taken raises UserError."""
        if name in self._entries:
            raise UserError(f"{self.what} {name!r} exists already; choose another name")
        self._entries[name] = entry
        return entry

    @contextmanager
    def lent(self, name: str, entry: Entry) -> Iterator[None]:
        """The entry is there inside, and gone afterwards. Raises as ``add``."""
        self.add(name, entry)
        try:
            yield
        finally:
            del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(self._entries)
        raise UserError(f"unknown {self.what} {name!r}; known: {known}.{hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def values(self) -> list[Entry]:
        """All entries."""
        return list(self._entries.values())
