"""SSE-RTD for exactly three samples, where RTD is the difference of the weights of spanning trees.

Three points have no loop of their own: the triangle is filled as soon as its last edge is there.
"""

import math

from tests.reference.later import convolved, features, risk


def distances(cloud):
    pairs = ((0, 1), (0, 2), (1, 2))
    size = math.sqrt(len(cloud[0]))
    return [
        sum((a - b) ** 2 for a, b in zip(cloud[i], cloud[j], strict=True)) ** 0.5 / size for i, j in pairs
    ]


def spanning_tree(lengths):
    first, second, _ = sorted(lengths, key=lambda length: length.item())
    return first + second


def divergence(p, q):
    d_p, d_q = distances(p), distances(q)
    least = [a if a.item() <= b.item() else b for a, b in zip(d_p, d_q, strict=True)]
    return (spanning_tree(d_p) + spanning_tree(d_q)) / 2 - spanning_tree(least)


LAYERS = {"features": features, "conv": convolved}


def rtd_penalty(theta, anchor, images, labels, *, alpha, layers):
    assert len(images) == 3
    rtd = 0
    for name, weight in layers.items():
        seen = LAYERS[name]
        p, q = [seen(anchor, image) for image in images], [seen(theta, image) for image in images]
        rtd = rtd + weight * divergence(p, q)
    nll = risk(theta, images, labels)
    return nll + alpha * rtd, {"nll": nll, "rtd": rtd}
