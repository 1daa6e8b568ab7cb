"""Manifold mixup, sample by sample, draws given."""

from tests.reference.plain import cross_entropy, mean


def loss(parts, images, labels, *, layer, coefficient, partners):
    """Of a network that is a list of functions of one sample; the input of one of them is mixed."""

    def through(value, functions):
        for function in functions:
            value = function(value)
        return value

    states = [through(image, parts[:layer]) for image in images]
    losses = []
    for i, partner in enumerate(partners):
        mixed = coefficient * states[i] + (1 - coefficient) * states[partner]
        logits = through(mixed, parts[layer:])
        losses.append(
            coefficient * cross_entropy(logits, labels[i])
            + (1 - coefficient) * cross_entropy(logits, labels[partner])
        )
    return mean(losses)
