"""BLEU of one sentence from its definition: every n-gram is looked for in every reference."""

import math


def grams(words, order):
    return [words[i : i + order] for i in range(len(words) - order + 1)]


def bleu(answer, references, order):
    words, texts = answer.lower().split(), [text.lower().split() for text in references]
    if not any(word in text for word in words for text in texts):
        return 0.0
    zeros, product, orders = 0, 1.0, min(order, len(words))
    for n in range(1, orders + 1):
        right, mine = 0, grams(words, n)
        for gram in {tuple(gram) for gram in mine}:
            most = max(grams(text, n).count(list(gram)) for text in texts)
            right += min(mine.count(list(gram)), most)
        if right == 0:
            zeros += 1
        product *= (right if right else 1 / 2**zeros) / len(mine)
    closest = sorted((abs(len(text) - len(words)), len(text)) for text in texts)[0][1]
    brevity = math.exp(1 - closest / len(words)) if len(words) < closest else 1.0
    return brevity * product ** (1 / orders)
