"""EQRM from its formula: plain numbers, but for the two ends through which its gradient flows."""

import math

from tests.reference.mmd import Adam, cross_entropies, mean


def normal(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def inverse_normal(share):
    left, right = -10.0, 10.0
    for _ in range(100):
        middle = (left + right) / 2
        left, right = (left, middle) if normal(middle) > share else (middle, right)
    return left


def bandwidth(risks):
    center = mean(risks)
    variance = sum((risk - center) ** 2 for risk in risks) / (len(risks) - 1)
    return 1.06 * variance**0.5 * len(risks) ** (-1 / 5)


def quantile(risks, share):
    """Of a list of scalar tensors."""
    h = bandwidth(risks)
    low, high = (end + h * inverse_normal(share) for end in (min(risks), max(risks)))
    left, right = low.item(), high.item()
    for _ in range(32):
        x = (left + right) / 2
        cumulated = mean([normal((x - risk.item()) / h.item()) for risk in risks])
        left, right = (left, x) if cumulated > share else (x, right)
    kappa = ((left + right) / 2 - low.item()) / (high - low).item()
    return kappa * high + (1 - kappa) * low


class Eqrm:
    """The updates of a model, with their counter and the moments of Adam."""

    def __init__(self, model, share, burnin, own_rate, rate):
        self.model, self.share, self.burnin, self.own_rate, self.rate = model, share, burnin, own_rate, rate
        self.counter = 0
        self.adam = Adam(model)

    def update(self, batches):
        risks = [mean(cross_entropies(self.model, batch)) for batch in batches]
        if self.counter == self.burnin:
            self.adam.forget()
            self.rate = self.own_rate
        loss = mean(risks) if self.counter < self.burnin else quantile(risks, self.share)
        self.adam.step(loss, self.rate)
        self.counter += 1
        return loss.item()
