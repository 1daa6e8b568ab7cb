"""The losses of IB, CEB, IBR, CEBR and DICE and the updates of their discriminator, number by number, draws given."""

import math

import torch
from tests.reference.plain import cross_entropy, mean


def features(theta, m, image):
    return [torch.tanh(sum(row * image.flatten())) for row in theta["first"][m]]


def scales(theta, m, h):
    shift = math.log(math.exp(0.5 - 1e-4) - 1)
    weight, bias = theta["scale_weight"][m], theta["scale_bias"][m]
    raw = [sum(h[i] * weight[i][j] for i in range(len(h))) + bias[j] + shift for j in range(len(h))]
    return [torch.log(1 + torch.exp(value)) + 1e-4 for value in raw]


def rate(means, deviations, centre):
    """The integral is known: sum of log(b / s) + (s^2 + (m - c)^2) / (2 b^2) - 1 / 2, with b = 1."""
    terms = zip(means, deviations, centre, strict=True)
    return sum(-torch.log(s) + (s * s + (m - c) ** 2) / 2 - 0.5 for m, s, c in terms)


def noisy(theta, images, noise):
    """Features of member m and image i, with noise on them."""
    table = []
    for m in range(len(theta["first"])):
        rows = []
        for i, image in enumerate(images):
            h = features(theta, m, image)
            rows.append([a + s * e for a, s, e in zip(h, scales(theta, m, h), noise[m][i], strict=True)])
        table.append(rows)
    return table


def linear(weight, bias, inputs):
    return [
        sum(w * x for w, x in zip(row, inputs, strict=True)) + b for row, b in zip(weight, bias, strict=True)
    ]


def logit(weights, first, second, label):
    values = [*first, *second]
    if "embedding.weight" in weights:
        values += list(weights["embedding.weight"][label])
    places = sorted({int(name.split(".")[1]) for name in weights if name.startswith("layers.")})
    for place in places:
        values = linear(weights[f"layers.{place}.weight"], weights[f"layers.{place}.bias"], values)
        if place != places[-1]:
            values = [value if value > 0 else 0.2 * value for value in values]
    return values[0]


def loss(theta, weights, images, labels, noise, *, beta, delta, tau=10.0, clip="soft", pairs="per_member"):
    """The loss with its two weights as they are at this update, and its terms."""
    members = range(len(theta["first"]))
    z = noisy(theta, images, noise)
    nll, compression = 0, 0
    for m in members:
        kl = []
        for i, label in enumerate(labels):
            h = features(theta, m, images[i])
            centre = theta["centres"][m][label if len(theta["centres"][m]) > 1 else 0]
            kl.append(rate(h, scales(theta, m, h), centre))
        weight, bias = theta[f"classifier.{m}.weight"], theta[f"classifier.{m}.bias"]
        compression = compression + mean(kl)
        nll = nll + mean(
            cross_entropy(torch.stack(linear(weight, bias, z[m][i])), label) for i, label in enumerate(labels)
        )
    total = nll + beta * compression
    if weights is None:
        return total, {"nll": nll, "compression": compression}
    estimates = []
    for one in members:
        for two in range(one + 1, len(members)):
            values = [logit(weights, z[one][i], z[two][i], label) for i, label in enumerate(labels)]
            if clip == "soft":
                values = [tau * torch.tanh(value / tau) for value in values]
            else:
                values = [min(max(value, -tau + 0 * value), tau + 0 * value) for value in values]
            estimates.append(mean(values))
    redundancy = sum(estimates) / (len(members) - 1 if pairs == "per_member" else len(estimates))
    return total + delta * redundancy, {"nll": nll, "compression": compression, "redundancy": redundancy}


def cyclic(labels, order):
    """The place of the next sample of the class in this order, None for one alone in its class."""
    partners = [None] * len(labels)
    for label in set(labels):
        own = [i for i in order if labels[i] == label]
        if len(own) > 1:
            for place, i in enumerate(own):
                partners[i] = own[(place + 1) % len(own)]
    return partners


def from_queue(z, labels, queue, draws, size):
    """The features of the partner, all members', of each sample; ``queue`` has all rows that a class ever got."""
    partners = []
    for i, label in enumerate(labels):
        found = {}
        for other, its in enumerate(labels):
            if other != i and its == label:
                found[draws[i][other]] = [rows[other] for rows in z]
        past = queue.get(label, [])
        for number in range(max(0, len(past) - size), len(past)):
            found[draws[i][len(labels) + number % size]] = past[number]
        partners.append(found[max(found)] if found else None)
    return partners


def discrimination(weights, z, partners, labels):
    """The loss and the accuracy of the discriminator; ``partners`` has rows of all members."""
    losses, right = [], []
    for one in range(len(z)):
        for two in range(one + 1, len(z)):
            for i, label in enumerate(labels):
                if partners[i] is None:
                    continue
                joint = logit(weights, z[one][i], z[two][i], label)
                product = logit(weights, z[one][i], partners[i][two], label)
                losses.append(-0.5 * (torch.log(torch.sigmoid(joint)) + torch.log(torch.sigmoid(-product))))
                right.append(0.5 * (float(joint > 0) + float(product <= 0)))
    if not losses:
        return 0 * sum(weight.sum() for weight in weights.values()), 0.5
    return mean(losses), mean(right)


def rmsprop_step(weights, loss, memory, *, lr, alpha=0.99, eps=1e-8):
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    moved = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        memory[name] = alpha * memory.get(name, 0.0) + (1 - alpha) * gradient**2
        moved[name] = (weight.detach() - lr * gradient / (memory[name] ** 0.5 + eps)).requires_grad_()
    return moved
