"""Answers and their references as lists of words: split on spaces, lower-cased, checked."""

from __future__ import annotations

from collections.abc import Sequence

from mirepoix.types import InputError

__all__ = ["Sentence", "words_of", "words_of_references"]

Sentence = tuple[str, ...]
"""Words."""


def words_of(
    answers: Sequence[str], references: Sequence[Sequence[str]], metric: str
) -> tuple[list[Sentence], list[list[Sentence]]]:
    """The words of each answer, and of each of its references.

    Args:
        answers: Texts. One may be empty.
        references: For each answer at least one text with at least one word.
        metric: How messages call what is computed.

    Raises:
        InputError: Otherwise.
    """
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise InputError(f"{metric}: expected a list of answers, got {answers!r}.")
    for place, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise InputError(f"{metric}: expected a text, got {answer!r} for answer {place}.")
    found = words_of_references(references, metric)
    if len(found) != len(answers):
        raise InputError(
            f"{metric}: expected references for each of {len(answers)} answers, got {len(found)} lists of references."
        )
    return [tuple(answer.lower().split()) for answer in answers], found


def words_of_references(references: Sequence[Sequence[str]], metric: str) -> list[list[Sentence]]:
    """The words of each reference, item by item.

    Raises:
        InputError: As in `words_of`.
    """
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise InputError(f"{metric}: expected a list of lists of references, got {references!r}.")
    found = []
    for place, several in enumerate(references):
        if isinstance(several, str) or not isinstance(several, Sequence) or not several:
            raise InputError(
                f"{metric}: expected a list of at least one reference for answer {place}, got {several!r}."
            )
        for text in several:
            if not isinstance(text, str) or not text.split():
                raise InputError(
                    f"{metric}: expected a reference of at least one word, got {text!r} for answer {place}."
                )
        found.append([tuple(text.lower().split()) for text in several])
    return found
