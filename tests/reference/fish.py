"""One update of Fish: Adam on one domain after the other, and then part of the way, buffers included."""

import math

import numpy as np
from tests.reference.complex_step import adam, gradient, risk


def update(theta, memory, domains, lr, weight_decay, meta_lr, buffers=None, move=None):
    """``move(buffers, domain)`` is what a forward pass does to the buffers."""
    here, now, losses = theta, buffers, []
    for domain in domains:
        losses.append(risk(here, domain))
        gradients = gradient(lambda t, domain=domain: risk(t, domain), here)
        here, memory = adam(here, gradients, memory, lr, weight_decay)
        now = move(now, domain) if move else now
    end = {name: theta[name] + meta_lr * (here[name] - theta[name]) for name in theta}
    parts = {"loss": sum(losses) / len(losses)}
    if buffers is None:
        return end, memory, parts
    kept = {}
    for name, before in buffers.items():
        value = before + meta_lr * (now[name] - before)
        kept[name] = math.trunc(value) if isinstance(before, int) else np.float64(value)
    return end, memory, parts, kept
