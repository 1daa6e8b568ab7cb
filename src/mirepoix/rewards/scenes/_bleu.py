r"""BLEU of single sentences: how many of the n-grams of an answer are in its references."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._words import words_of
from mirepoix.rewards.text._libraries import library
from mirepoix.types import InputError

__all__ = ["bleu"]


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> NDArray[np.float64]:
    r"""BLEU of each answer by itself, the first ``order`` n-grams weighted alike.

    .. math:: \min\bigl(1, e^{1 - r/c}\bigr) \Bigl(\prod_{n=1}^{N} p_n\Bigr)^{1/N},

    with :math:`p_n` the share of the n-grams of the answer that are in a reference, each counted no more often than
    in the reference that has it most often; :math:`c` the number of words of the answer; and :math:`r` that of the
    reference whose length is closest, the shorter of two that are as close.

    A single sentence often has no long n-gram right, and the product would be zero. So the j-th :math:`p_n` that is
    zero counts as :math:`2^{-j}` n-grams right, and :math:`N` is no larger than the number of words of the
    answer. An answer without a single right word has 0, as has an empty one. Higher is better, in [0, 1]; 1 for an
    answer that is one of its references. With ``order=1``, BLEU-1, nothing is smoothed.

    Words are split on spaces and lower-cased. It needs ``pip install 'mirepoix[text]'``, for sacrebleu.

    Args:
        answers: Texts.
        references: At least one text for each answer.
        order: The longest n-gram :math:`N`; 4 by default, as in the paper.

    Returns:
        One number per answer.

    Raises:
        InputError: For an order below 1; if numbers of answers and references differ; for an answer without
            references, or a reference without words.

    Example:
        >>> bleu(["a bold seven", "seven"], [["a bold seven"], ["a bold seven"]]).round(3).tolist()
        [1.0, 0.135]

    References:
        Papineni et al. (2002), BLEU: a method for automatic evaluation of machine translation. Smoothing: Chen and
        Cherry (2014), A systematic comparison of smoothing techniques for sentence-level BLEU, method 3.
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise InputError(f"bleu: expected an order of at least 1, got {order!r}.")
    said, expected = words_of(answers, references, "bleu")
    metric = _metric(order)
    # Rounding of logarithms can lead a little above 1.
    scores = [
        min(1.0, metric.sentence_score(" ".join(answer), [" ".join(text) for text in texts]).score / 100)
        for answer, texts in zip(said, expected, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


@lru_cache
def _metric(order: int) -> Any:
    return library("sacrebleu").metrics.BLEU(
        tokenize="none", smooth_method="exp", effective_order=True, max_ngram_order=order
    )
