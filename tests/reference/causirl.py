"""CausIRL from its formula: every sum a loop, in double precision."""

import torch
from tests.reference.mmd import cross_entropies, features, mean


def squared_moments(one, other):
    """The distance of CORAL."""
    d = len(one[0])
    means, covariances = [], []
    for rows in (one, other):
        mu = [mean([row[k] for row in rows]) for k in range(d)]
        means.append(mu)
        covariances.append(
            [
                [sum((row[k] - mu[k]) * (row[m] - mu[m]) for row in rows) / (len(rows) - 1) for m in range(d)]
                for k in range(d)
            ]
        )
    of_means = mean([(means[0][k] - means[1][k]) ** 2 for k in range(d)])
    of_covariances = mean(
        [(covariances[0][k][m] - covariances[1][k][m]) ** 2 for k in range(d) for m in range(d)]
    )
    return of_means + of_covariances


def cuts(batches):
    """One per domain, drawn in their order from torch's global generator."""
    return [int(torch.randint(len(batch.labels), ())) for batch in batches]


def causirl(model, batches, gamma, distance, places):
    """`places` are the cuts; `distance` is `squared_moments` or `squared_mmd`."""
    risk = mean([mean(cross_entropies(model, batch)) for batch in batches])
    one, other = [], []
    for batch, place in zip(batches, places, strict=True):
        for i, row in enumerate(features(model, batch)):
            (one if i < place else other).append(row)
    if len(one) < 2 or len(other) < 2:
        return risk
    return risk + gamma * distance(one, other)
