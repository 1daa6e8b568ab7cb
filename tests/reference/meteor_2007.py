"""The formula of METEOR (2007), given which words are matched: pairs of places in answer and reference."""

from itertools import pairwise


def meteor(matches, answer_words, reference_words):
    if not matches:
        return 0.0
    matches = sorted(matches)
    precision, recall = len(matches) / answer_words, len(matches) / reference_words
    mean = 10 * precision * recall / (recall + 9 * precision)
    chunks = 1
    for (i, j), (k, m) in pairwise(matches):
        if k != i + 1 or m != j + 1:
            chunks += 1
    return mean * (1 - 0.5 * (chunks / len(matches)) ** 3)
