"""One update of first-order MLDG, with copies of the weights and an inner Adam that is new for every pair."""

import numpy as np
from tests.reference.complex_step import adam, fresh, gradient, risk


def update(theta, memory, domains, lr, weight_decay, mldg_beta, n_meta_test, order):
    """``order`` is the permutation of the domains."""
    count = len(domains)
    train, test = order[: max(count - n_meta_test, 0)], order[max(count - n_meta_test, 0) :]
    total = {name: np.zeros(value.shape) for name, value in theta.items()}
    loss = 0.0
    for place, i in enumerate(train):
        j = test[place % len(test)]
        shorter = min(len(domains[i]), len(domains[j]))
        one, other = domains[i][:shorter], domains[j][:shorter]

        gradients = gradient(lambda t, domain=one: risk(t, domain), theta)
        inner, _ = adam(theta, gradients, fresh(theta), lr, weight_decay)
        tested = gradient(lambda t, domain=other: risk(t, domain), inner)
        for name in theta:
            total[name] = total[name] + gradients[name] / count + mldg_beta * tested[name] / count
        loss += (risk(theta, one) + mldg_beta * risk(inner, other)) / count
    return (*adam(theta, total, memory, lr, weight_decay), {"loss": loss})
