"""Simplexes of weights: volumes by heights over faces, and the loss sample by sample, shares given."""

import math

import torch
from tests.reference.plain import cross_entropy, mean


def volume(points):
    """Of the simplex between points, lists of numbers: the product of heights over the faces before, over (n - 1)!."""
    edges = [[x - y for x, y in zip(point, points[0], strict=True)] for point in points[1:]]
    directions, product = [], 1
    for edge in edges:
        for direction in directions:
            along = sum(x * d for x, d in zip(edge, direction, strict=True))
            edge = [x - along * d for x, d in zip(edge, direction, strict=True)]
        height = sum(x * x for x in edge) ** 0.5
        directions.append([x / height for x in edge])
        product = product * height
    return product / math.factorial(len(edges))


def heron(a, b, c):
    half = (a + b + c) / 2
    return math.sqrt(half * (half - a) * (half - b) * (half - c))


def logits(theta, image):
    """Of one image: a layer without a bias, tanh, and a classifier."""
    pixels = image.flatten()
    features = [torch.tanh(sum(row * pixels)) for row in theta["featurizer.1.weight"]]
    weight, bias = theta["classifier.weight"], theta["classifier.bias"]
    return torch.stack(
        [
            sum(w * f for w, f in zip(row, features, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
    )


def loss(theta, vertices, images, labels, *, shares, alpha, root):
    """And its parts: the mean cross-entropy over points, and the volume."""
    risks = []
    for share in shares:
        mixed = {
            name: sum(s * w[name] for s, w in zip(share, [*vertices, theta], strict=True)) for name in theta
        }
        risks.append(mean(cross_entropy(logits(mixed, x), y) for x, y in zip(images, labels, strict=True)))
    flat = [[x for name in theta for x in w[name].flatten()] for w in [*vertices, theta]]
    size = volume(flat)
    size = size if root else size**2
    nll = mean(risks)
    return nll - alpha * torch.log(size + 1e-4), {"nll": nll, "volume": size}
