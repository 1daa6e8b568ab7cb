"""ROUGE-L of captions, with the longest common subsequence found among all subsequences."""

from itertools import combinations


def is_subsequence(words, text):
    place = 0
    for word in text:
        if place < len(words) and words[place] == word:
            place += 1
    return place == len(words)


def common(first, second):
    for size in range(len(first), 0, -1):
        if any(is_subsequence(words, second) for words in combinations(first, size)):
            return size
    return 0


def rouge_l(answer, references, beta=1.2):
    words, texts = answer.lower().split(), [text.lower().split() for text in references]
    if not words:
        return 0.0
    precision = max(common(words, text) / len(words) for text in texts)
    recall = max(common(words, text) / len(text) for text in texts)
    if precision == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
