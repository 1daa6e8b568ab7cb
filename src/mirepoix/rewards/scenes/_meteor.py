r"""A METEOR without downloads: words of an answer aligned to a reference by form, stem or a table of synonyms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.scenes._words import words_of
from mirepoix.rewards.text._libraries import library
from mirepoix.types import InputError

__all__ = ["meteor"]

Synonyms = Mapping[str, Sequence[str]]


def meteor(
    answers: Sequence[str], references: Sequence[Sequence[str]], synonyms: Synonyms | None = None
) -> NDArray[np.float64]:
    r"""METEOR of each answer, in the form of 2007 and with a table of synonyms in the place of WordNet.

    .. math:: \Bigl(1 - \tfrac{1}{2} (k/m)^3\Bigr) \frac{P R}{0.9 P + 0.1 R},
        \qquad P = m/|c|, \quad R = m/|s|,

    for an answer :math:`c` and a reference :math:`s` of which :math:`m` words are matched: those that are the same,
    then those of the same stem, then synonyms. The matched words form :math:`k` chunks, runs of neighbours in the same
    order in both. The best reference counts. Higher is better, in [0, 1). Recall weighs nine times as much as
    precision. An answer that is its reference has :math:`1 - 1/(2m^3)`, which is the maximum for that reference: 0.5
    for one word, 0.94 for two, 0.98 for three. An answer without a match has 0, as has an empty one.

    This is NLTK's formula and not METEOR 1.5, which published captions are compared with: no paraphrases, no weights
    of function words, other parameters, and an alignment that is greedy from the end instead of the one with the
    fewest chunks. Numbers of the two cannot be compared.

    Words are split on spaces and lower-cased. It needs ``pip install 'mirepoix[text]'``, for NLTK.

    Args:
        answers: Texts.
        references: At least one text for each answer.
        synonyms: From a word to words of the same meaning, single words all. Taken both ways, and only one step: a
            synonym of a synonym is none. None by default.

    Returns:
        One number per answer.

    Raises:
        InputError: If numbers of answers and references differ; for an answer without references, a reference without
            words, or a synonym that is no single word.

    Example:
        >>> expected = [["a bold seven"]] * 3
        >>> meteor(["a bold seven", "a seven", "a thick seven"], expected).round(3).tolist()
        [0.981, 0.345, 0.333]
        >>> meteor(["a thick seven"], expected[:1], {"bold": ["thick"]}).round(3).tolist()
        [0.981]

    References:
        Lavie and Agarwal (2007), METEOR: an automatic metric for MT evaluation with high levels of correlation with
        human judgments. Version 1.5: Denkowski and Lavie (2014).
    """
    said, expected = words_of(answers, references, "meteor")
    module = library("nltk.translate.meteor_score")
    stemmer = _stemmer()
    table = _Table(_checked(synonyms or {}), stemmer)
    scores = [
        module.meteor_score(texts, answer, stemmer=stemmer, wordnet=table) if answer else 0.0
        for answer, texts in zip(said, expected, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _checked(synonyms: Synonyms) -> Synonyms:
    if not isinstance(synonyms, Mapping):
        raise InputError(f"synonyms: expected a mapping from word to words, got {synonyms!r}.")
    for word, others in synonyms.items():
        if isinstance(others, str):
            raise InputError(f"synonyms: expected a list of words for {word!r}, got {others!r}.")
        for text in (word, *others):
            if not isinstance(text, str) or len(text.split()) != 1 or "_" in text:
                raise InputError(f"synonyms: expected single words, got {text!r} for {word!r}.")
    return synonyms


class _Stemmer:
    """NLTK's, which takes a long time for a word, with what it said before."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=100_000)(library("nltk.stem.porter").PorterStemmer().stem)


@lru_cache(maxsize=1)
def _stemmer() -> _Stemmer:
    return _Stemmer()


class _Table:
    """What NLTK asks of WordNet: ``synsets(word)``, of each ``lemmas()``, of each ``name()``."""

    def __init__(self, synonyms: Synonyms, stemmer: _Stemmer) -> None:
        # NLTK looks up words that are stemmed already ("abov"), and compares what it finds with stems.
        names: dict[str, set[str]] = {}
        for word, others in synonyms.items():
            for other in others:
                one, two = stemmer.stem(word.lower()), stemmer.stem(other.lower())
                names.setdefault(one, set()).add(two)
                names.setdefault(two, set()).add(one)
        self._synsets = {
            word: [_Synset([_Lemma(name) for name in sorted(found)])] for word, found in names.items()
        }

    def synsets(self, word: str) -> list[_Synset]:
        return self._synsets.get(word, [])


class _Synset:
    def __init__(self, lemmas: list[_Lemma]) -> None:
        self._lemmas = lemmas

    def lemmas(self) -> list[_Lemma]:
        return self._lemmas


class _Lemma:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name
