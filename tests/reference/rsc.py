"""One update of RSC, sample by sample, with percentiles from sorted lists."""

import math

import numpy as np
from tests.reference.complex_step import STEP, adam, cross_entropy, features, gradient


def head(theta, z):
    weight, bias = theta["classifier.weight"], theta["classifier.bias"]
    return np.array([sum(weight[c][k] * z[k] for k in range(len(z))) + bias[c] for c in range(len(bias))])


def probability(theta, z, label):
    s = head(theta, z)
    return math.exp(s[label]) / sum(math.exp(value) for value in s)


def percentile(values, percent):
    """Linear interpolation between the two nearest of the sorted values."""
    values = sorted(values)
    place = percent / 100 * (len(values) - 1)
    if abs(place - round(place)) < 1e-9:
        return values[round(place)]
    below = math.floor(place)
    return values[below] + (place - below) * (values[below + 1] - values[below])


def masks(theta, samples, f, b):
    muting, changes = [], []
    for x, y in samples:
        z = features(theta, x)
        slopes = []
        for k in range(len(z)):
            shifted = z.astype(complex)
            shifted[k] += 1j * STEP
            slopes.append(np.imag(head(theta, shifted)[y]) / STEP)
        threshold = percentile(slopes, (1 - f) * 100)
        mask = [1 if slope < threshold else 0 for slope in slopes]
        muting.append(mask)
        muted = np.array([z[k] * mask[k] for k in range(len(z))])
        changes.append(probability(theta, z, y) - probability(theta, muted, y))
    threshold = percentile(changes, (1 - b) * 100)
    return [
        [1] * len(mask) if change < threshold else mask for mask, change in zip(muting, changes, strict=True)
    ]


def update(theta, memory, domains, lr, weight_decay, rsc_f_drop_factor, rsc_b_drop_factor):
    samples = [sample for domain in domains for sample in domain]
    chosen = masks(theta, samples, rsc_f_drop_factor, rsc_b_drop_factor)

    def loss(t):
        total = 0
        for (x, y), mask in zip(samples, chosen, strict=True):
            z = features(t, x)
            total = total + cross_entropy(head(t, np.array([z[k] * mask[k] for k in range(len(z))])), y)
        return total / len(samples)

    return (*adam(theta, gradient(loss, theta), memory, lr, weight_decay), {"loss": np.real(loss(theta))})
