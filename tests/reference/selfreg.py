"""One update of SelfReg, layer by layer, with the draws given."""

import numpy as np
from tests.reference.complex_step import adam, cross_entropy, features, gradient, logits


def linear(theta, name, rows):
    weight, bias = theta[f"{name}.weight"], theta[f"{name}.bias"]
    return [
        [sum(weight[o][k] * row[k] for k in range(len(row))) + bias[o] for o in range(len(bias))]
        for row in rows
    ]


def batch_norm(theta, name, rows, moments=None):
    """With the moments of the batch, which are noted in ``moments``: mean and unbiased variance of each column."""
    n, columns = len(rows), range(len(rows[0]))
    mean = [sum(row[k] for row in rows) / n for k in columns]
    variance = [sum((row[k] - mean[k]) ** 2 for row in rows) / n for k in columns]
    if moments is not None:
        moments[name] = (np.real(mean), np.real(variance) * n / (n - 1))
    scale, shift = theta[f"{name}.weight"], theta[f"{name}.bias"]
    return [
        [(row[k] - mean[k]) / (variance[k] + 1e-5) ** 0.5 * scale[k] + shift[k] for k in columns]
        for row in rows
    ]


def relu(rows):
    return [[value if np.real(value) > 0 else 0 * value for value in row] for row in rows]


def project(theta, rows, moments=None):
    for place in (0, 3):
        rows = relu(
            batch_norm(
                theta,
                f"projection.{place + 1}",
                linear(theta, f"projection.{place}", rows),
                moments,
            )
        )
    return batch_norm(theta, "projection.7", linear(theta, "projection.6", rows), moments)


def distance(rows, others):
    squares = [
        (a - b) ** 2 for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True)
    ]
    return sum(squares) / len(squares)


def mixed(share, rows, others):
    return [
        [share * a + (1 - share) * b for a, b in zip(row, other, strict=True)]
        for row, other in zip(rows, others, strict=True)
    ]


def loss(theta, samples, share, one, other, factor, moments=None):
    """``one`` and ``other`` name the partner of each sample; ``factor`` is the constant c, a number or None."""
    z = [features(theta, x) for x, _ in samples]
    s = [logits(theta, row) for row in z]
    p = project(theta, z, moments)
    risk = sum(cross_entropy(row, y) for row, (_, y) in zip(s, samples, strict=True)) / len(samples)
    if factor is None:
        factor = min(1.0, np.real(risk))
    s2, p2 = [s[i] for i in one], [p[i] for i in one]
    s3, p3 = mixed(share, s2, [s[i] for i in other]), mixed(share, p2, [p[i] for i in other])
    in_class = distance(s, s2) + 0.3 * distance(z, p2)
    between = distance(s, s3) + 0.3 * distance(z, p3)
    return risk + factor * (share * in_class + (1 - share) * between), risk


def update(theta, memory, domains, lr, weight_decay, share, one, other, trained):
    """``trained`` names the weights that move; the moments of the batch norms are returned last."""
    samples = [sample for domain in domains for sample in domain]
    moments = {}
    value, risk = loss(theta, samples, share, one, other, None, moments)
    factor = min(1.0, np.real(risk))
    moving = {name: theta[name] for name in trained}
    gradients = gradient(
        lambda t: loss({**theta, **t}, samples, share, one, other, factor)[0],
        moving,
    )
    moved, memory = adam(moving, gradients, memory, lr, weight_decay)
    return {**theta, **moved}, memory, {"loss": np.real(value)}, moments
