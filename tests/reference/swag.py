"""SWAG, number by number: moments as Maddox et al. (2019, algorithm 1) write them, draws given."""

import math


def moments(iterates):
    """Of lists of numbers: the means, the mean squares, and the deviation of each from the mean when it came."""
    means, squares, deviations = [0.0] * len(iterates[0]), [0.0] * len(iterates[0]), []
    for n, iterate in enumerate(iterates):
        means = [(n * mean + x) / (n + 1) for mean, x in zip(means, iterate, strict=True)]
        squares = [(n * square + x * x) / (n + 1) for square, x in zip(squares, iterate, strict=True)]
        deviations.append([x - mean for x, mean in zip(iterate, means, strict=True)])
    return means, squares, deviations


def sample(iterates, rank, scale, z1, z2):
    means, squares, deviations = moments(iterates)
    kept = deviations[-rank:] if rank else []
    theta = []
    for j, mean in enumerate(means):
        spread = math.sqrt(max(squares[j] - mean**2, 1e-30)) * z1[j]
        for column, z in zip(kept, z2, strict=True):
            spread += column[j] * z / math.sqrt(len(kept) - 1)
        theta.append(mean + math.sqrt(scale) * spread)
    return theta


def covariance(iterates, rank, scale):
    """Of the samples, as rows."""
    means, squares, deviations = moments(iterates)
    kept = deviations[-rank:] if rank else []
    rows = []
    for i in range(len(means)):
        row = []
        for j in range(len(means)):
            value = sum(column[i] * column[j] for column in kept) / max(len(kept) - 1, 1)
            row.append(scale * (value + (squares[i] - means[i] ** 2 if i == j else 0)))
        rows.append(row)
    return rows
