"""Which texts are nearly the same as one that was seen before."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import defaultdict


def normalized(text: str) -> str:
    """Letters and digits in lower case, one space between: what differs else does not count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def shingles(text: str, size: int = 4) -> frozenset[str]:
    """The character n-grams of a normalised text; of a shorter one, the text itself."""
    padded = f" {normalized(text)} "
    return frozenset(padded[at : at + size] for at in range(max(1, len(padded) - size + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Size of what two sets share by that of what they have together, 0..1."""
    return len(one & other) / len(one | other) if one or other else 1.0


class Seen:
    """Texts seen so far. A text is alike to one of them where the Jaccard index of their shingles
    is at least ``threshold``, in (0, 1].

    Exact, without comparing all pairs: sets that are so alike share one of the first
    ``n - ceil(threshold * n) + 1`` members in any fixed order (prefix filtering, Bayardo, Ma and
    Srikant 2007), so only those are looked up.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sets: list[frozenset[str]] = []
        self._by_member: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Remember a text."""
        found = shingles(text)
        for member in self._first(found):
            self._by_member[member].append(len(self._sets))
        self._sets.append(found)

    def holds(self, text: str) -> bool:
        """Is there one like this."""
        found = shingles(text)
        near = {place for member in self._first(found) for place in self._by_member.get(member, ())}
        return any(jaccard(found, self._sets[place]) >= self.threshold for place in near)

    def _first(self, found: frozenset[str]) -> list[str]:
        # by a hash, and not by the letters: no member is then in very many prefixes
        ordered = sorted(found, key=lambda each: (zlib.crc32(each.encode()), each))
        return ordered[: len(found) - math.ceil(self.threshold * len(found) - 1e-9) + 1]
