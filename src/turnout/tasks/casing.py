"""How words are written, for hosts whose tokenizer lowers all letters: a class beside each token.

An uncased host cannot tell "apple" from "Apple"; for names that is much of what there is to know. A
tokenizer that was given ``cased`` also returns ``case_ids``, which a model of tasks embeds and adds
to its word embeddings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

CASES = ("none", "lower", "UPPER", "Title", "miXed", "12", "a1")
NAME = "case_ids"
MARK = "_turnout_cased"


def case_of(word: str) -> int:
    """The class of a word, as a place in CASES; 0 for what has neither letters nor digits."""
    letters = [c for c in word if c.isalpha()]
    if not letters:
        return 5 if any(c.isdigit() for c in word) else 0
    if len(letters) < sum(c.isalnum() for c in word):
        return 6
    if all(c.islower() for c in letters) or not any(c.isupper() or c.istitle() for c in letters):
        return 1
    if all(c.isupper() for c in letters) and len(letters) > 1:
        return 2
    return 3 if letters[0].isupper() and not any(c.isupper() for c in letters[1:]) else 4


def cased(tokenizer: Any) -> Any:
    """The tokenizer, in place, with ``case_ids`` in what it returns and pads."""
    if not hasattr(type(tokenizer), MARK):
        tokenizer.__class__ = _cased_class(type(tokenizer))
    if NAME not in tokenizer.model_input_names:  # a saved one may know the name, never the class
        tokenizer.model_input_names = [*tokenizer.model_input_names, NAME]
    return tokenizer


@functools.cache
def _cased_class(cls: Any) -> Any:
    """The class of a tokenizer with cases, under the same name, which is saved."""

    def call(self: Any, text: Any = None, text_pair: Any = None, **kwargs: Any) -> Any:
        wanted = kwargs.pop("return_offsets_mapping", False)
        out = cls.__call__(self, text, text_pair, return_offsets_mapping=True, **kwargs)
        places = out["offset_mapping"] if wanted else out.pop("offset_mapping")
        split = kwargs.get("is_split_into_words", False)
        one = isinstance(text, str) or (split and isinstance(text[0], str))
        texts = [text] if one else text
        pairs = [text_pair] if one else text_pair or [None] * len(texts)
        rows = [places] if one else places
        found = [
            _cases(out, row, offsets, (texts[row], pairs[row]), split)
            for row, offsets in enumerate(rows)
        ]
        out[NAME] = found[0] if one else found
        return out

    def pad(self: Any, encoded: Any, *args: Any, **kwargs: Any) -> Any:
        cases = encoded.get(NAME) if isinstance(encoded, Mapping) else None
        out = cls._pad(self, encoded, *args, **kwargs)
        if cases is not None:
            gap = [0] * (len(out["input_ids"]) - len(cases))
            side = kwargs.get("padding_side") or self.padding_side
            out[NAME] = [*cases, *gap] if side == "right" else [*gap, *cases]
        return out

    own = {"__call__": call, "_pad": pad, "__module__": cls.__module__, MARK: True}
    return type(cls.__name__, (cls,), own)


def _cases(out: Any, row: int, offsets: Any, texts: tuple[Any, Any], split: bool) -> list[int]:
    """A class a token of one row: that of the word which it is a part of."""
    words, sides = out.word_ids(row), out.sequence_ids(row)
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for word, side, (begin, end) in zip(words, sides, offsets, strict=True):
        if word is not None:
            low, high = spans.get((side, word), (begin, end))
            spans[side, word] = (min(low, begin), max(high, end))
    found = []
    for word, side in zip(words, sides, strict=True):
        if word is None:
            found.append(0)
            continue
        text = texts[side][word] if split else texts[side]
        begin, end = spans[side, word]
        found.append(case_of(text if split else text[begin:end]))
    return found
