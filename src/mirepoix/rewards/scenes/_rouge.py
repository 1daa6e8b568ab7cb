r"""ROUGE-L: the longest common subsequence of an answer and its references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._words import Sentence, words_of

__all__ = ["longest_common_subsequence", "rouge_l"]

BETA = 1.2


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    r"""ROUGE-L of each answer, as captions are compared.

    .. math:: F = \frac{(1 + \beta^2) P R}{R + \beta^2 P}, \qquad
        P = \max_j \frac{\text{LCS}(c, s_j)}{|c|}, \qquad R = \max_j \frac{\text{LCS}(c, s_j)}{|s_j|},

    with :math:`\beta = 1.2`, LCS the number of words of the longest common subsequence, which may have gaps, of the
    answer :math:`c` and the reference :math:`s_j`. The best precision and the best recall may be those of two
    references: this is the convention of the evaluation of COCO captions, and gives no less than the best F of one
    reference. Higher is better, in [0, 1]; 1 for an answer that is one of its references, 0 for an empty one.

    Words are split on spaces and lower-cased.

    Args:
        answers: Texts.
        references: At least one text for each answer.

    Returns:
        One number per answer.

    Raises:
        InputError: If numbers of answers and references differ; for an answer without references, or a reference
            without words.

    Example:
        >>> rouge_l(["a bold seven", "seven bold"], [["a bold seven"], ["a bold seven"]]).round(3).tolist()
        [1.0, 0.386]

    References:
        Lin (2004), ROUGE: a package for automatic evaluation of summaries; Chen et al. (2015), Microsoft COCO
        captions: data collection and evaluation server, section 3.
    """
    said, expected = words_of(answers, references, "rouge_l")
    scores = np.zeros(len(said))
    for place, (answer, texts) in enumerate(zip(said, expected, strict=True)):
        common = [longest_common_subsequence(answer, text) for text in texts]
        if any(common):
            precision = max(common) / len(answer)
            recall = max(size / len(text) for size, text in zip(common, texts, strict=True))
            scores[place] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return np.minimum(scores, 1.0)


def longest_common_subsequence(first: Sentence, second: Sentence) -> int:
    """Its number of words."""
    # A row of the table of lengths as the bits of one integer: a bit is 0 where the length grows (Hyyrö, 2004).
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(first) - row.bit_count()
