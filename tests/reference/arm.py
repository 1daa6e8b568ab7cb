"""One update of adaptive risk minimization, pixel by pixel, and a prediction."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean, outputs


def convolution(theta, name, image):
    """5x5, with zeros around an image of channels, rows and columns."""
    weight, bias = theta[f"{name}.weight"], theta[f"{name}.bias"]
    _, height, width = image.shape
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            value = bias
            for dy in range(5):
                for dx in range(5):
                    v, u = y + dy - 2, x + dx - 2
                    if 0 <= v < height and 0 <= u < width:
                        value = value + weight[:, :, dy, dx] @ image[:, v, u]
            row.append(value)
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def batch_norm(theta, name, images, statistics, training):
    """With the moments of all images and pixels, or those remembered; these move in training."""
    if training:
        pixels = [image[:, y, x] for image in images for y, x in places(image)]
        n = len(pixels)
        average = mean(pixels)
        variance = mean((pixel - average) ** 2 for pixel in pixels)
        old = statistics.get(name, (torch.zeros_like(average), torch.ones_like(average)))
        statistics[name] = (
            0.9 * old[0] + 0.1 * average.detach(),
            0.9 * old[1] + 0.1 * variance.detach() * n / (n - 1),
        )
    else:
        average, variance = statistics[name]
    scale, shift = theta[f"{name}.weight"], theta[f"{name}.bias"]
    wide = [value[:, None, None] for value in (average, variance, scale, shift)]
    return [(image - wide[0]) / (wide[1] + 1e-5) ** 0.5 * wide[2] + wide[3] for image in images]


def places(image):
    return [(y, x) for y in range(image.shape[1]) for x in range(image.shape[2])]


def maps(theta, images, statistics, training):
    for place in (0, 3):
        images = [convolution(theta, f"context.{place}", image) for image in images]
        images = batch_norm(theta, f"context.{place + 1}", images, statistics, training)
        images = [torch.where(image > 0, image, 0.0) for image in images]
    return [convolution(theta, "context.6", image) for image in images]


def with_context(theta, groups, statistics, training):
    """The images of all groups in a row, each with the mean map of its group."""
    made = maps(theta, [image for group in groups for image in group], statistics, training)
    result = []
    for group in groups:
        context = mean(made[len(result) : len(result) + len(group)])
        result += [torch.cat([image, context]) for image in group]
    return result


def update(theta, state, given, *, fixed=None):
    """``fixed`` are weights of a context network that is not trained."""
    statistics = state.setdefault("statistics", {})
    every = {**theta, **(fixed or {})}
    images = with_context(every, [list(batch.images) for batch in given], statistics, training=True)
    labels = [int(label) for batch in given for label in batch.labels]
    loss = mean(
        cross_entropy(outputs(theta, image)[1], label) for image, label in zip(images, labels, strict=True)
    )
    return adam_step(theta, loss, state["adam"]), {"loss": loss}


def predict(theta, state, images, support_size):
    images = list(images)
    size = support_size if len(images) % support_size == 0 else len(images)
    groups = [images[first : first + size] for first in range(0, len(images), size)]
    seen = with_context(theta, groups, state["statistics"], training=False)
    return torch.stack([outputs(theta, image)[1] for image in seen])
