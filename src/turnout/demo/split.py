"""A split that depends on the texts alone, with no near-duplicates across its sides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

SIDES = ("train", "validation", "test")


def normalised(text: str) -> str:
    """Lower-case words and numbers, one space between: what two copies of a text share."""
    return " ".join(re.findall(r"\w+", text.lower()))


def groups(
    texts: Sequence[str], documents: Sequence[Hashable], alike: float = 0.5, rare: int = 60
) -> list[int]:
    """For each text the first index of its group: texts of one document, and near-duplicates.

    Near-duplicates share at least the part `alike` of their word triples (Jaccard). Triples found
    in more than `rare` texts ("one of the") propose no pairs, so the work stays near-linear.
    """
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(a: int, b: int) -> None:
        a, b = sorted((root(a), root(b)))
        parent[b] = a

    first: dict[Hashable, int] = {}
    for index, document in enumerate(documents):
        join(index, first.setdefault(document, index))
    shingles = [_triples(text) for text in texts]
    holders: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, own in enumerate(shingles):
        # sets of one text come first: an exact copy must join however common its triples are
        join(index, first.setdefault(("text", frozenset(own)), index))
        shared = Counter(
            other for triple in own if len(holders[triple]) <= rare for other in holders[triple]
        )
        for other, both in shared.items():
            if both >= alike * (len(own) + len(shingles[other]) - both):
                join(index, other)
        for triple in own:
            holders[triple].append(index)
    return [root(index) for index in range(len(texts))]


def sides(texts: Sequence[str], groups: Sequence[int]) -> list[str]:
    """For each text "train" (about 80 %), "validation" or "test" (10 % each), one side a group.

    The side is a hash of the group's first text in sorting order, so the order of rows is nothing.
    """
    name: dict[int, str] = {}
    for text, group in zip(texts, groups, strict=True):
        text = normalised(text)
        name[group] = min(name.get(group, text), text)
    side = {group: _side(text) for group, text in name.items()}
    return [side[group] for group in groups]


def _side(text: str) -> str:
    tenth = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return SIDES[max(0, tenth - 7)]


def _triples(text: str) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
