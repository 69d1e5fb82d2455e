"""How varied texts are: pure functions of texts, or of their vectors.

Words are runs of letters and digits, or single other marks, in lower case. N texts, D width.
"""

from __future__ import annotations

import gzip
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from turnout.errors import UserError


def words_of(text: str) -> list[str]:
    """What n-grams are counted over."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words. n below 1 raises ValueError."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    words = words_of(text)
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams by all n-grams of all texts together, 0..1, high is varied; 0 without any
    (Li et al. 2016, arXiv 1510.03055). It falls as texts grow longer."""
    all_of = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(all_of)) / len(all_of) if all_of else 0.0


def expected_distinct(texts: Sequence[str], vocabulary: int, n: int = 1) -> float:
    """Different n-grams by how many would be expected if C n-grams were drawn from V equally
    likely ones: ``d / (V * (1 - ((V - 1) / V) ** C))``, 0 and up, about 1 where nothing repeats
    more than chance has it (Liu et al. 2022, arXiv 2202.13587). It does not fall with length.

    vocabulary: V, of whatever writes; below 1 raises ValueError.
    """
    if vocabulary < 1:
        raise ValueError(f"vocabulary must be at least 1, got {vocabulary}")
    all_of = [gram for text in texts for gram in ngrams(text, n)]
    if not all_of:
        return 0.0
    if vocabulary == 1:
        return float(len(set(all_of)))
    # log1p and expm1: V may be large, and the power then close to 1
    expected = -vocabulary * math.expm1(len(all_of) * math.log1p(-1 / vocabulary))
    return len(set(all_of)) / expected


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 (sacreBLEU, smoothed) of each text against all others, 0..1, low is varied (Zhu
    et al. 2018, arXiv 1802.01886). Fewer than two texts raise ValueError; UserError without
    sacreBLEU."""
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs two texts at least, got {len(texts)}")
    try:
        from sacrebleu.metrics import BLEU  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("self-BLEU needs sacreBLEU: pip install 'turnout[text]'") from None
    bleu = BLEU(effective_order=True, smooth_method="exp")
    scores = [
        bleu.sentence_score(text, [*texts[:at], *texts[at + 1 :]]).score
        for at, text in enumerate(texts)
    ]
    return min(1.0, float(np.mean(scores)) / 100)


def compression(texts: Sequence[str]) -> float:
    """Bytes of all texts by their bytes once gzip has them, above 0, low is varied (Shaib et al.
    2024, arXiv 2403.00553). It grows with the amount of text: compare equal amounts. 0 without
    texts."""
    raw = "\n".join(texts).encode("utf-8", "replace")
    return len(raw) / len(gzip.compress(raw, 9, mtime=0)) if raw else 0.0


def entropy(texts: Sequence[str], n: int = 2) -> float:
    """Shannon entropy of the n-grams of all texts, in bits, 0 up to log2 of their number, high is
    varied (Zhang et al. 2018, arXiv 1809.05972)."""
    counts = Counter(gram for text in texts for gram in ngrams(text, n))
    whole = counts.total()
    return -sum(k / whole * math.log2(k / whole) for k in counts.values()) + 0.0


def spread(vectors_ND: np.ndarray) -> float:
    """Mean cosine distance of all pairs of vectors, 0..2, high is varied (Tevet and Berant 2021,
    arXiv 2004.02990, with sentence vectors). A vector of zeros is at distance 1 from all. Fewer
    than two vectors raise ValueError."""
    vectors_ND = np.asarray(vectors_ND, dtype=np.float64)
    if vectors_ND.ndim != 2 or len(vectors_ND) < 2:
        raise ValueError(f"vectors must be (N, D) with N of 2 or more, got {vectors_ND.shape}")
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    units_ND = np.divide(vectors_ND, length_N1, out=np.zeros_like(vectors_ND), where=length_N1 > 0)
    count = len(units_ND)
    # the sum over pairs i != j of u_i . u_j, without an N x N matrix
    alike = float((units_ND.sum(0) ** 2).sum() - (units_ND**2).sum())
    return 1.0 - alike / (count * (count - 1))


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that it had before, 0..1, low is good; 0 for one that is shorter
    (Welleck et al. 2020, arXiv 1908.04319: seq-rep-4)."""
    grams = ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
