"""CutMix, pixel by pixel, draws given."""

import torch
from tests.reference import mixmo
from tests.reference.plain import cross_entropy, mean


def loss(logits_of, images, labels, *, areas, centres, partners):
    """The mean over samples, with the logits of one image from a function; an area of None is no box."""
    losses = []
    for i, partner in enumerate(partners):
        rows, columns = images[i].shape[-2:]
        mixed, own = images[i].clone(), 0
        inside = mixmo.box(areas[i] or 0.0, centres[i], (rows, columns))
        for row in range(rows):
            for column in range(columns):
                if inside[row][column]:
                    mixed[:, row, column] = images[partner][:, row, column]
                else:
                    own += 1
        share, logits = own / (rows * columns), logits_of(mixed)
        losses.append(
            share * cross_entropy(logits, labels[i]) + (1 - share) * cross_entropy(logits, labels[partner])
        )
    return mean(losses)


def draws(samples, size, alpha, probability):
    """The numbers that an update draws, in their order."""
    chosen = (torch.rand(samples, dtype=torch.float64) < probability).tolist()
    alpha = torch.tensor(alpha, dtype=torch.float64)
    areas = torch.distributions.Beta(alpha, alpha).sample((samples,)).tolist()
    rows, columns = (torch.randint(side, (samples,)).tolist() for side in size)
    return {
        "areas": [area if one else None for area, one in zip(areas, chosen, strict=True)],
        "centres": list(zip(rows, columns, strict=True)),
        "partners": torch.randperm(samples).tolist(),
    }
