"""The area of a polygon from its corners, and its mean over all orders of the axes."""

import itertools
import math


def area(radii):
    corners = [
        (r * math.cos(2 * math.pi * k / len(radii)), r * math.sin(2 * math.pi * k / len(radii)))
        for k, r in enumerate(radii)
    ]
    return (
        sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True))
        / 2
    )


def areas(radii):
    return [area(order) for order in itertools.permutations(radii)]
