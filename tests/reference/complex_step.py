"""Gradients without calculus: for an analytic f, the imaginary part of f(theta + ih) / h, exact to rounding.

Weights are a dictionary of arrays; a domain is a list of pairs of a vector and a label. Everything may be complex.
"""

import math

import numpy as np

STEP = 1e-40


def gradient(function, theta):
    """The derivative of a number in every entry of the weights, one entry at a time."""
    result = {name: np.zeros(value.shape) for name, value in theta.items()}
    for name, value in theta.items():
        for index in np.ndindex(value.shape):
            shifted = {other: array.astype(complex) for other, array in theta.items()}
            shifted[name][index] += 1j * STEP
            result[name][index] = np.imag(function(shifted)) / STEP
    return result


def features(theta, x):
    return np.array([np.tanh(sum(row[k] * x[k] for k in range(len(x)))) for row in theta["first"]])


def logits(theta, z):
    return np.array([sum(row[k] * z[k] for k in range(len(z))) for row in theta["last"]])


def cross_entropy(s, label):
    return np.log(sum(np.exp(value) for value in s)) - s[label]


def risk(theta, domain):
    """The mean cross-entropy of two layers with a hyperbolic tangent between them."""
    return sum(cross_entropy(logits(theta, features(theta, x)), y) for x, y in domain) / len(domain)


def adam(theta, gradients, memory, lr, weight_decay):
    """Weights and memory (moments, count) after one step of Adam, entry by entry."""
    betas, eps = (0.9, 0.999), 1e-8
    count = memory["count"] + 1
    new, first, second = {}, {}, {}
    for name in theta:
        new[name] = theta[name].copy()
        first[name], second[name] = memory["first"][name].copy(), memory["second"][name].copy()
        for index in np.ndindex(theta[name].shape):
            g = gradients[name][index] + weight_decay * theta[name][index]
            first[name][index] = betas[0] * first[name][index] + (1 - betas[0]) * g
            second[name][index] = betas[1] * second[name][index] + (1 - betas[1]) * g * g
            m = first[name][index] / (1 - betas[0] ** count)
            v = second[name][index] / (1 - betas[1] ** count)
            new[name][index] = theta[name][index] - lr * m / (math.sqrt(v) + eps)
    return new, {"count": count, "first": first, "second": second}


def fresh(theta):
    """The memory of an optimizer that has made no step."""
    return {
        "count": 0,
        "first": {name: np.zeros(value.shape) for name, value in theta.items()},
        "second": {name: np.zeros(value.shape) for name, value in theta.items()},
    }
