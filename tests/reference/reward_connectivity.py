"""Margins of the hypothesis and of the chord, point by point and reward by reward."""


def margins(coefficients, means, ends):
    """``coefficients[point][expert]``, ``means[point][reward]``, ``ends[expert][reward]``."""
    return [
        [
            value - sum(share * end[k] for share, end in zip(shares, ends, strict=True))
            for k, value in enumerate(row)
        ]
        for shares, row in zip(coefficients, means, strict=True)
    ]


def chord_margin(point, first, second, steps=20_000):
    """On a fine grid of the segment."""
    best = -float("inf")
    for i in range(steps + 1):
        s = i / steps
        worst = min(p - ((1 - s) * a + s * b) for p, a, b in zip(point, first, second, strict=True))
        best = max(best, worst)
    return best


def simplex_margin(point, ends, steps=60):
    """On a grid of the triangle of three experts."""
    best = -float("inf")
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            shares = (i / steps, j / steps, (steps - i - j) / steps)
            best = max(
                best,
                min(
                    p - sum(s * e[k] for s, e in zip(shares, ends, strict=True)) for k, p in enumerate(point)
                ),
            )
    return best
