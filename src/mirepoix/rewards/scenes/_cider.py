r"""CIDEr-D: how much of what is rare in other captions an answer shares with its references."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._words import Sentence, words_of, words_of_references
from mirepoix.types import InputError

__all__ = ["CiderD"]

ORDER = 4
SIGMA = 6.0


class _Vector(NamedTuple):
    """tf-idf of the n-grams of one sentence, for n = 1, ..., 4."""

    weights: tuple[dict[Sentence, float], ...]
    norms: tuple[float, ...]
    words: int


class CiderD:
    r"""CIDEr-D of answers, with document frequencies from the references of a corpus.

    .. math:: \text{CIDEr-D}(c, S) = \frac{1}{4} \sum_{n=1}^{4} \frac{10}{|S|} \sum_{s \in S}
        e^{-(|c| - |s|)^2 / 2 \sigma^2}
        \frac{\min(g^n(c), g^n(s)) \cdot g^n(s)}{\lVert g^n(c) \rVert \lVert g^n(s) \rVert},

    the minimum entry by entry, :math:`\sigma = 6` words, and

    .. math:: g^n_k(s) = h_k(s) \log \frac{|I|}{\max(1, d_k)},

    :math:`h_k(s)` the number of times the n-gram :math:`k` comes in the sentence, :math:`|I|` the number of items of
    the corpus and :math:`d_k` the number of those that have it in a reference. The paper divides :math:`h_k` by the
    number of n-grams of the sentence; its code, and all published numbers, take the counts, as here. A fraction
    of 0 over 0 is 0.

    Higher is better, in [0, 10]; some papers multiply by 100 instead of 10. An answer that is its only reference has
    10 if it has four words and none of its orders consists of n-grams that every item has; with several references it
    is the mean over them, so 10 is out of reach. An empty answer has 0. Words are split on spaces and lower-cased.

    Args:
        references: The texts of each item of the corpus: all references of the training set.

    Attributes:
        digest: A text that names the corpus.

    Raises:
        InputError: With fewer than two items: then everything is in all of them. For an item without references, or
            a reference without words.

    Example:
        >>> cider = CiderD([["a bold seven over a two"], ["a thin three over a one"]])
        >>> cider(["a bold seven over a two", "a thin seven"], [["a bold seven over a two"]] * 2).round(2).tolist()
        [10.0, 0.9]

    References:
        Vedantam et al. (2015), CIDEr: consensus-based image description evaluation, equations 1 to 5.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        corpus = words_of_references(references, "CiderD")
        if len(corpus) < 2:
            raise InputError(
                f"CiderD: expected the references of at least two items, got {len(corpus)}. Pass those of the whole "
                "training set."
            )
        self._items = len(corpus)
        self._frequencies = Counter(
            gram for texts in corpus for gram in {gram for text in texts for gram in _counts(text)}
        )
        self._known: dict[Sentence, _Vector] = {}
        self._corpus = corpus

    @cached_property
    def digest(self) -> str:
        """Equal for the same references in the same order."""
        return hashlib.sha256(json.dumps(self._corpus).encode()).hexdigest()[:32]

    def __call__(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """One number per answer.

        Args:
            answers: Texts.
            references: At least one text for each answer; of the corpus or not.

        Raises:
            InputError: If numbers of answers and references differ; for an answer without references, or a reference
                without words.
        """
        said, expected = words_of(answers, references, "CiderD")
        scores = [
            10 * math.fsum(self._similarity(mine, self._reference(text)) for text in texts) / len(texts)
            for mine, texts in zip(map(self._vector, said), expected, strict=True)
        ]
        return np.clip(np.array(scores, dtype=np.float64), 0.0, 10.0)

    def _reference(self, sentence: Sentence) -> _Vector:
        """References come again and again, so their vectors are kept."""
        found = self._known.get(sentence)
        if found is None:
            found = self._known[sentence] = self._vector(sentence)
        return found

    def _vector(self, sentence: Sentence) -> _Vector:
        weights: tuple[dict[Sentence, float], ...] = tuple({} for _ in range(ORDER))
        for gram, count in _counts(sentence).items():
            rarity = math.log(self._items / max(1, self._frequencies[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        norms = tuple(math.hypot(*found.values()) for found in weights)
        return _Vector(weights, norms, len(sentence))

    @staticmethod
    def _similarity(answer: _Vector, reference: _Vector) -> float:
        total = 0.0
        for mine, its, size, other in zip(
            answer.weights, reference.weights, answer.norms, reference.norms, strict=True
        ):
            if size > 0 and other > 0:
                product = sum(
                    min(value, its[gram]) * its[gram] for gram, value in mine.items() if gram in its
                )
                total += product / (size * other)
        return total / ORDER * math.exp(-((answer.words - reference.words) ** 2) / (2 * SIGMA**2))


def _counts(sentence: Sentence) -> Counter[Sentence]:
    """Of the n-grams of all orders."""
    return Counter(
        sentence[start : start + order]
        for order in range(1, ORDER + 1)
        for start in range(len(sentence) - order + 1)
    )
