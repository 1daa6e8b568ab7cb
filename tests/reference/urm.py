"""One update of URM, sample by sample, with the noise and the targets given."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean

ACTIVATIONS = {
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "relu": lambda x: x * (x > 0),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "none": lambda x: x,
}


def head(theta, name, values):
    rows = zip(theta[f"{name}.weight"], theta[f"{name}.bias"], strict=True)
    return torch.stack([(row * values).sum() + bias for row, bias in rows])


def activated(theta, image, activation):
    pixels = image.flatten()
    return ACTIVATIONS[activation](torch.tanh(torch.stack([sum(row * pixels) for row in theta["first"]])))


def told(discriminator, values):
    """The logit of one sample; layers are named by their place, with a leaky ReLU between them."""
    places = sorted({int(name.split(".")[0]) for name in discriminator})
    for place in places[:-1]:
        values = head(discriminator, str(place), values)
        values = torch.where(values > 0, values, 0.01 * values)
    return head(discriminator, str(places[-1]), values)[0]


def binary(logit, target):
    """The cross-entropy of a logit against a probability."""
    probability = 1 / (1 + torch.exp(-logit))
    return -target * torch.log(probability) - (1 - target) * torch.log(1 - probability)


def classification(theta, samples, activation):
    features = [activated(theta, x, activation) for x, _ in samples]
    return mean(
        cross_entropy(head(theta, "classifier", z), y) for z, (_, y) in zip(features, samples, strict=True)
    )


def penalty(theta, discriminator, samples, activation, targets):
    features = [activated(theta, x, activation) for x, _ in samples]
    return mean(binary(told(discriminator, z), t) for z, t in zip(features, targets, strict=True))


def sgd_step(theta, loss, memory, *, lr, weight_decay):
    """With momentum 0.9: the first velocity is the gradient."""
    gradients = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    moved = {}
    for name, weight in theta.items():
        gradient = gradients[name] + weight_decay * weight.detach()
        memory[name] = 0.9 * memory[name] + gradient if name in memory else gradient
        moved[name] = (weight.detach() - lr * memory[name]).requires_grad_()
    return moved


def update(theta, adam, discriminator, memory, batches, draws, *, weight, activation, optimizer, lr, decay):
    """``draws`` are the targets of the network, the noise, its targets, and those of the features."""
    samples = [(x, int(y)) for b in batches for x, y in zip(b.images, b.labels, strict=True)]
    aims, noise, real, fake = draws
    features = [activated(theta, x, activation).detach() for x, _ in samples]
    logged = {
        "nll": classification(theta, samples, activation),
        "penalty": penalty(theta, discriminator, samples, activation, aims),
    }
    logged["loss"] = logged["nll"] + weight * logged["penalty"]
    theta = adam_step(theta, logged["loss"], adam)
    logged["discriminator"] = mean(
        binary(told(discriminator, u), t) for u, t in zip(noise, real, strict=True)
    ) + weight * mean(binary(told(discriminator, z), t) for z, t in zip(features, fake, strict=True))
    step = adam_step if optimizer == "adam" else sgd_step
    discriminator = step(discriminator, logged["discriminator"], memory, lr=lr, weight_decay=decay)
    return theta, discriminator, logged
