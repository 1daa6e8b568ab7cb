"""Masks, weights and the loss of MixMo, pixel by pixel, draws given."""

import math

import torch
from tests.reference.plain import cross_entropy, mean


def box(share, centre, size):
    """Rows of 0 and 1: CutMix."""
    half = [int(side * math.sqrt(share)) // 2 for side in size]
    top, left = (max(0, c - h) for c, h in zip(centre, half, strict=True))
    bottom, right = (min(side, c + h) for c, h, side in zip(centre, half, size, strict=True))
    return [
        [1.0 if top <= row < bottom and left <= column < right else 0.0 for column in range(size[1])]
        for row in range(size[0])
    ]


def masks(kappa, centre, size, roles, *, cut):
    """Of one sample: for each member, rows of numbers."""
    count = len(kappa)
    if cut and count > 1:
        inside = box(kappa[0], centre, size)
        made = [inside]
        for k in kappa[1:]:
            made.append([[(1 - value) * k / sum(kappa[1:]) for value in row] for row in inside])
    else:
        made = [[[k] * size[1] for _ in range(size[0])] for k in kappa]
    return [made[role] for role in roles]


def mean_of(mask):
    return mean(value for row in mask for value in row)


def weights(kappa, r):
    total = sum(k ** (1 / r) for k in kappa)
    return [len(kappa) * k ** (1 / r) / total for k in kappa]


def convolved(weight, image):
    """3 x 3, one column and row of zeros around, no bias."""
    channels, height, width = image.shape
    rows = []
    for row in range(height):
        rows.append([])
        for column in range(width):
            total = 0
            for c in range(channels):
                for i in range(3):
                    for j in range(3):
                        y, x = row + i - 1, column + j - 1
                        if 0 <= y < height and 0 <= x < width:
                            total = total + weight[c, i, j] * image[c, y, x]
            rows[-1].append(total)
    return rows


def logits(theta, images, mask):
    """Of all members, for one sample: images and masks of each member; tanh, the mean, two layers."""
    members = len(images)
    filters = len(theta["featurizer.encoders.0.weight"])
    size = (images[0].shape[1], images[0].shape[2])
    means = []
    for f in range(filters):
        maps = [convolved(theta[f"featurizer.encoders.{m}.weight"][f], images[m]) for m in range(members)]
        values = []
        for row in range(size[0]):
            for column in range(size[1]):
                whole = sum(members * mask[m][row][column] * maps[m][row][column] for m in range(members))
                values.append(torch.tanh(whole))
        means.append(mean(values))
    scale = theta["featurizer.core.scale.weight"]
    features = [sum(w * x for w, x in zip(row, means, strict=True)) for row in scale]
    found = []
    for m in range(members):
        weight, bias = theta[f"classifier.{m}.weight"], theta[f"classifier.{m}.bias"]
        found.append(
            torch.stack(
                [sum(weight[k][f] * features[f] for f in range(filters)) + bias[k] for k in range(len(bias))]
            )
        )
    return found


def loss(theta, images, labels, *, mask, r, other_labels=None, shares=None):
    """Of images[member][sample], labels and masks alike; the loss and the plain sum of cross-entropies."""
    members, samples = range(len(images)), range(len(labels[0]))
    total, plain = 0, 0
    for s in samples:
        found = logits(theta, [images[m][s] for m in members], [mask[m][s] for m in members])
        kappa = [mean_of(mask[m][s]) for m in members]
        for m, w in zip(members, weights(kappa, r), strict=True):
            value = cross_entropy(found[m], labels[m][s])
            if shares is not None:
                value = shares[m][s] * value + (1 - shares[m][s]) * cross_entropy(
                    found[m], other_labels[m][s]
                )
            total, plain = total + w * value, plain + value
    return total / len(samples), plain / len(samples)


def cut_and_pasted(own, other, share, centre, mask):
    """An image with a box of another in it, and what the own label counts."""
    size = own.shape[1:]
    kept = [[1 - value for value in row] for row in box(share, centre, size)]
    places = [(row, column) for row in range(size[0]) for column in range(size[1])]
    count = mean(kept[i][j] * mask[i][j] for i, j in places) / (mean_of(mask) + 1e-8)
    if count < 0.5:
        kept, count = [[1 - value for value in row] for row in kept], 1 - count
    kept = torch.tensor(kept, dtype=own.dtype)
    return kept * own + (1 - kept) * other, count
