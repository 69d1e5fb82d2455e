from __future__ import annotations

import random

from turnout.demo.split import groups, normalised, sides

TEXTS = [
    "The film was a great surprise to me and to my friends",
    "the film was a GREAT surprise to me, and to my friend!",
    "Nothing here is like the others at all",
    "short one",
    "Short one!",
    "the second sentence of the first document",
]
DOCUMENTS = ["a", "b", "c", "d", "e", "a"]


def test_copies_near_copies_and_documents_stay_together():
    assert groups(TEXTS, DOCUMENTS) == [0, 0, 2, 3, 3, 0]


def test_copies_join_however_common_their_words():
    texts = ["one of the few"] * 5 + [f"one of the few {i} things that matter" for i in range(5)]
    assert len(set(groups(texts, range(10), rare=1)[:5])) == 1


def test_the_order_of_rows_changes_nothing():
    texts = [f"text number {i} about {i * i} things and {i % 7} more" for i in range(2000)]
    documents = [i // 3 for i in range(2000)]
    side = dict(zip(texts, sides(texts, groups(texts, documents)), strict=True))
    order = random.Random(0).sample(range(2000), 2000)
    mixed = [texts[i] for i in order]
    again = sides(mixed, groups(mixed, [documents[i] for i in order]))
    assert side == dict(zip(mixed, again, strict=True))
    share = [list(side.values()).count(name) / 2000 for name in ("train", "validation", "test")]
    assert abs(share[0] - 0.8) < 0.1 and share[1] > 0.02 and share[2] > 0.02


def test_normalised():
    assert normalised("  It's GREAT\t(really)! ") == "it s great really"
