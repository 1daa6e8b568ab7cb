"""The volume under points by inclusion and exclusion, and the area over a line by summing thin strips."""

import itertools
import math


def hypervolume(points, reference):
    above = [p for p in points if all(x > r for x, r in zip(p, reference, strict=True))]
    total = 0.0
    for size in range(1, len(above) + 1):
        for subset in itertools.combinations(above, size):
            sides = [min(p[k] for p in subset) - reference[k] for k in range(len(reference))]
            total += (-1) ** (size + 1) * math.prod(sides)
    return total


def area_over_line(points, ideal, nadir, strips=100_000):
    """Mid-point sums of what lies between the line through the points and the top of the box."""
    points = sorted(points, key=lambda p: (p[0], -p[1]))
    total, width = 0.0, (ideal[0] - nadir[0]) / strips
    for i in range(strips):
        x = nadir[0] + (i + 0.5) * width
        if x <= points[0][0]:
            y = points[0][1]
        elif x > points[-1][0]:
            y = nadir[1]
        else:
            (x0, y0), (x1, y1) = next(
                (a, b) for a, b in itertools.pairwise(points) if a[0] < x <= b[0] or a[0] == x == b[0]
            )
            y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        total += width * (ideal[1] - y)
    return total
