"""One update of AND-mask, entry by entry."""

import numpy as np
from tests.reference.complex_step import adam, gradient, risk


def update(theta, memory, domains, lr, weight_decay, tau):
    of_domains = [gradient(lambda t, domain=domain: risk(t, domain), theta) for domain in domains]
    edited, kept, entries = {}, 0, 0
    for name, value in theta.items():
        mask, mean = np.zeros(value.shape), np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            gradients = [g[name][index] for g in of_domains]
            signs = [1 if g > 0 else -1 if g < 0 else 0 for g in gradients]
            mask[index] = 1 if abs(sum(signs)) / len(signs) >= tau else 0
            mean[index] = sum(gradients) / len(gradients)
        edited[name] = mask * mean / (1e-10 + sum(mask.flat) / mask.size)
        kept, entries = kept + sum(mask.flat), entries + mask.size
    loss = sum(risk(theta, domain) for domain in domains) / len(domains)
    return (*adam(theta, edited, memory, lr, weight_decay), {"loss": loss, "kept": kept / entries})
