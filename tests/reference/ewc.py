"""Elastic weight consolidation, number by number."""

import torch
from tests.reference.later import entries, logits, risk
from tests.reference.plain import cross_entropy


def ewc(theta, anchor, fisher, images, labels, *, alpha):
    names = list(fisher)
    numbers = zip(entries(fisher, names), entries(theta, names), entries(anchor, names), strict=True)
    distance = sum(f * (a - b) ** 2 for f, a, b in numbers)
    nll = risk(theta, images, labels)
    return nll + alpha / 2 * distance, {"nll": nll, "fisher_distance": distance}


def empirical_fisher(theta, images, labels):
    """The mean over samples of squared gradients of the log-probability of the true class."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    total = {name: torch.zeros_like(value) for name, value in theta.items()}
    for image, label in zip(images, labels, strict=True):
        score = -cross_entropy(logits(theta, image), label)
        for name, gradient in zip(theta, torch.autograd.grad(score, list(theta.values())), strict=True):
            total[name] += gradient**2 / len(images)
    return total
