"""The losses of ONE and OKDDip, number by number."""

import math

import torch
from tests.reference.plain import cross_entropy, mean


def outputs(theta, image):
    """Features and logits of each member: lists of numbers."""
    features, logits = [], []
    for m in range(len(theta["first"])):
        h = [torch.tanh(sum(row * image.flatten())) for row in theta["first"][m]]
        weight, bias = theta[f"classifier.{m}.weight"], theta[f"classifier.{m}.bias"]
        z = [sum(w * a for w, a in zip(row, h, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        features.append(h)
        logits.append(z)
    return features, logits


def softmax(values):
    exponentials = [torch.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def divergence(target, student, temperature):
    """KL(softmax(target / T) || softmax(student / T)) T^2."""
    p = softmax([value / temperature for value in target])
    q = softmax([value / temperature for value in student])
    return temperature**2 * sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))


def gates(theta, rows):
    """The weights of the members for each sample, and the moments of the batch that batch norm saw."""
    linear = [
        [sum(w * x for w, x in zip(weight, row, strict=True)) + bias for weight, bias in affine(theta)]
        for row in rows
    ]
    columns = list(zip(*linear, strict=True))
    means = [mean(column) for column in columns]
    variances = [mean((x - mu) ** 2 for x in column) for column, mu in zip(columns, means, strict=True)]
    result = []
    for row in linear:
        scores = []
        for m, x in enumerate(row):
            x = (x - means[m]) / (variances[m] + 1e-5) ** 0.5
            x = x * theta["gate.1.weight"][m] + theta["gate.1.bias"][m]
            scores.append(x if x > 0 else 0 * x)
        result.append(softmax(scores))
    return result, (means, variances)


def affine(theta):
    return zip(theta["gate.0.weight"], theta["gate.0.bias"], strict=True)


def mixture(weights, logits):
    return [sum(w * z[k] for w, z in zip(weights, logits, strict=True)) for k in range(len(logits[0]))]


def one(theta, images, labels, *, weight, temperature, detach=False):
    """``weight`` is that of the distillation at this update."""
    seen = [outputs(theta, image) for image in images]
    middle = [
        [sum(h[j] for h in features) / len(features) for j in range(len(features[0]))] for features, _ in seen
    ]
    weights, moments = gates(theta, middle)
    nll, teacher_nll, distilled = [], [], []
    for (_, logits), gate, label in zip(seen, weights, labels, strict=True):
        teacher = mixture(gate, logits)
        nll.append(sum(cross_entropy(torch.stack(z), label) for z in logits))
        teacher_nll.append(cross_entropy(torch.stack(teacher), label))
        target = [z.detach() for z in teacher] if detach else teacher
        distilled.append(sum(divergence(target, z, temperature) for z in logits))
    parts = {"nll": mean(nll), "teacher_nll": mean(teacher_nll), "distillation": mean(distilled)}
    return parts["nll"] + parts["teacher_nll"] + weight * parts["distillation"], parts, moments


def okddip(theta, images, labels, *, weight, temperature, leader=False):
    nll, distilled, led = [], [], []
    for image, label in zip(images, labels, strict=True):
        features, logits = outputs(theta, image)
        nll.append(sum(cross_entropy(torch.stack(z), label) for z in logits))
        peers = range(len(logits) - 1 if leader else len(logits))
        queries, keys = (
            [[sum(row * torch.stack(features[m])) for row in theta[f"{name}.weight"]] for m in peers]
            for name in ("query", "key")
        )
        total = 0
        for m in peers:
            scores = [sum(a * b for a, b in zip(queries[m], key, strict=True)) for key in keys]
            target = mixture(softmax(scores), [logits[j] for j in peers])
            total = total + divergence(target, logits[m], temperature)
        distilled.append(total)
        if leader:
            middle = mixture([1 / len(peers)] * len(peers), [logits[j] for j in peers])
            led.append(divergence(middle, logits[-1], temperature))
    parts = {"nll": mean(nll), "distillation": mean(distilled)}
    loss = parts["nll"] + weight * parts["distillation"]
    if leader:
        parts["leader_distillation"] = mean(led)
        loss = loss + weight * parts["leader_distillation"]
    return loss, parts


def ramp(update, steps):
    return math.exp(-5 * (1 - min(update / steps, 1)) ** 2) if steps else 1.0
