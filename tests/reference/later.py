"""A tiny network of a convolution and a linear layer, sample by sample, and what references of later members share."""

import torch
from tests.reference.plain import cross_entropy, mean


def convolved(theta, image):
    """A kernel over the whole image for each feature."""
    pixels = image.flatten()
    kernels, biases = theta["featurizer.conv.weight"], theta["featurizer.conv.bias"]
    return [sum(kernel.flatten() * pixels) + bias for kernel, bias in zip(kernels, biases, strict=True)]


def features(theta, image):
    return [torch.tanh(value) for value in convolved(theta, image)]


def logits(theta, image):
    seen = features(theta, image)
    rows, biases = theta["classifier.weight"], theta["classifier.bias"]
    return torch.stack(
        [
            sum(a * b for a, b in zip(row, seen, strict=True)) + bias
            for row, bias in zip(rows, biases, strict=True)
        ]
    )


def risk(theta, images, labels):
    pairs = zip(images, labels, strict=True)
    return mean(cross_entropy(logits(theta, image), label) for image, label in pairs)


def entries(theta, names):
    """All numbers of these tensors, one after the other."""
    return [value for name in names for value in theta[name].flatten()]
