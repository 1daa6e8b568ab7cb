"""One update of IGA: the gradients of domains by the chain rule, and the gradient of their distances without it."""

import numpy as np
from tests.reference.complex_step import adam, features, gradient, logits, risk


def by_hand(theta, domain):
    """The gradient of the risk, written out, in numbers that may be complex."""
    first = np.zeros(theta["first"].shape, dtype=complex)
    last = np.zeros(theta["last"].shape, dtype=complex)
    for x, y in domain:
        z = features(theta, x)
        s = logits(theta, z)
        total = sum(np.exp(value) for value in s)
        for c in range(len(s)):
            residual = (np.exp(s[c]) / total - (1 if c == y else 0)) / len(domain)
            for j in range(len(z)):
                last[c, j] += residual * z[j]
                for k in range(len(x)):
                    first[j, k] += residual * theta["last"][c, j] * (1 - z[j] * z[j]) * x[k]
    return {"first": first, "last": last}


def distances(theta, domains, means):
    total = 0
    for domain in domains:
        g = by_hand(theta, domain)
        for name in theta:
            for index in np.ndindex(theta[name].shape):
                total = total + (g[name][index] - means[name][index]) ** 2
    return total


def update(theta, memory, domains, lr, weight_decay, penalty):
    gradients = [by_hand(theta, domain) for domain in domains]
    means = {name: sum(np.real(g[name]) for g in gradients) / len(domains) for name in theta}

    def nll(t):
        return sum(risk(t, domain) for domain in domains) / len(domains)

    def loss(t):
        return nll(t) + penalty * distances(t, domains, means)

    parts = {
        "loss": np.real(loss(theta)),
        "nll": nll(theta),
        "penalty": np.real(distances(theta, domains, means)),
    }
    return (*adam(theta, gradient(loss, theta), memory, lr, weight_decay), parts)
