"""A tiny network, its cross-entropy and Adam, sample by sample: what the references are written with."""

import torch


def outputs(theta, image):
    """Features and logits of one image: two layers with a tanh between them."""
    pixels = image.flatten()
    features = torch.tanh(torch.stack([sum(row * pixels) for row in theta["first"]]))
    logits = torch.stack([sum(row * features) for row in theta["last"]])
    return features, logits


def cross_entropy(logits, label):
    return torch.log(sum(torch.exp(logit) for logit in logits)) - logits[label]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def risk(theta, batch):
    """The mean cross-entropy of one domain."""
    return mean(
        cross_entropy(outputs(theta, image)[1], int(label))
        for image, label in zip(batch.images, batch.labels, strict=True)
    )


def new_adam():
    return {"count": 0, "first": {}, "second": {}}


def adam_step(theta, loss, adam, *, lr=0.05, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8):
    """The weights after one step of Adam (Kingma and Ba, 2015, algorithm 1) on the loss plus wd / 2 |theta|^2."""
    gradients = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    adam["count"] += 1
    moved = {}
    for name, weight in theta.items():
        gradient = gradients[name] + weight_decay * weight.detach()
        first = betas[0] * adam["first"].get(name, 0.0) + (1 - betas[0]) * gradient
        second = betas[1] * adam["second"].get(name, 0.0) + (1 - betas[1]) * gradient**2
        adam["first"][name], adam["second"][name] = first, second
        first = first / (1 - betas[0] ** adam["count"])
        second = second / (1 - betas[1] ** adam["count"])
        moved[name] = (weight.detach() - lr * first / (second**0.5 + eps)).requires_grad_()
    return moved
