"""The loss of ADP, number by number, with the determinant by Leibniz's formula."""

from itertools import permutations

import torch
from tests.reference.one import outputs, softmax
from tests.reference.plain import cross_entropy, mean


def determinant(matrix):
    size = len(matrix)
    total = 0
    for order in permutations(range(size)):
        product = 1.0
        for row, column in enumerate(order):
            product = product * matrix[row][column]
        swaps = sum(order[i] > order[j] for i in range(size) for j in range(i + 1, size))
        total = total + (-1) ** swaps * product
    return total


def log_determinant(probabilities, label):
    rows = []
    for p in probabilities:
        wrong = [value for k, value in enumerate(p) if k != label]
        norm = sum(value**2 for value in wrong) ** 0.5
        rows.append([value / norm for value in wrong])
    gram = [
        [
            sum(x * y for x, y in zip(a, b, strict=True)) + (1e-6 if i == j else 0.0)
            for j, b in enumerate(rows)
        ]
        for i, a in enumerate(rows)
    ]
    return torch.log(determinant(gram))


def adp(theta, images, labels, *, alpha, beta):
    nll, entropies, volumes = [], [], []
    for image, label in zip(images, labels, strict=True):
        _, logits = outputs(theta, image)
        nll.append(sum(cross_entropy(torch.stack(z), label) for z in logits))
        probabilities = [softmax(z) for z in logits]
        middle = [mean(column) for column in zip(*probabilities, strict=True)]
        entropies.append(-sum(p * torch.log(p + 1e-20) for p in middle))
        if beta:
            volumes.append(log_determinant(probabilities, label))
    parts = {"nll": mean(nll), "entropy": mean(entropies)}
    loss = parts["nll"] - alpha * parts["entropy"]
    if beta:
        parts["log_det"] = mean(volumes)
        loss = loss - beta * parts["log_det"]
    return loss, parts
