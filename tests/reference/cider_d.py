"""CIDEr-D from the definition, with vectors over all n-grams of the corpus and the sentences compared.

Counts in the vectors as the authors' code has them, where the paper's first equation has frequencies.
"""

import math


def grams(text, order):
    words = text.lower().split()
    found = []
    for i in range(len(words)):
        if i + order <= len(words):
            found.append(" ".join(words[i : i + order]))
    return found


def vector(text, order, axes, corpus):
    entries = []
    for axis in axes:
        frequency = 0
        for texts in corpus:
            if any(axis in grams(other, order) for other in texts):
                frequency += 1
        entries.append(grams(text, order).count(axis) * (math.log(len(corpus)) - math.log(max(1, frequency))))
    return entries


def length(entries):
    return math.sqrt(sum(x * x for x in entries))


def cider_d(answer, references, corpus, sigma=6.0):
    of_orders = []
    for order in (1, 2, 3, 4):
        total = 0.0
        for reference in references:
            axes = sorted({*grams(answer, order), *grams(reference, order)})
            g_c, g_s = vector(answer, order, axes, corpus), vector(reference, order, axes, corpus)
            if length(g_c) == 0 or length(g_s) == 0:
                continue
            clipped = sum(min(c, s) * s for c, s in zip(g_c, g_s, strict=True))
            apart = len(answer.split()) - len(reference.split())
            total += math.exp(-(apart**2) / (2 * sigma**2)) * clipped / (length(g_c) * length(g_s))
        of_orders.append(10 * total / len(references))
    return sum(of_orders) / 4
