"""One update of SagNet, sample by sample, with the draws given and an optimizer for each of the three players."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean

PLAYERS = {
    "featurizer": ["first"],
    "classifier": ["classifier.weight", "classifier.bias"],
    "style": ["style.weight", "style.bias"],
}


def featurize(theta, image):
    pixels = image.flatten()
    return torch.tanh(torch.stack([sum(row * pixels) for row in theta["first"]]))


def head(theta, name, features):
    rows = zip(theta[f"{name}.weight"], theta[f"{name}.bias"], strict=True)
    return torch.stack([sum(row * features) + bias for row, bias in rows])


def moments(features):
    """Mean and unbiased variance over the entries of one sample."""
    center = mean(features)
    return center, sum((value - center) ** 2 for value in features) / (len(features) - 1)


def content(features):
    center, variance = moments(features)
    return (features - center) / (variance + 1e-5) ** 0.5


def with_style(features, shares, order):
    """Every sample in a style between its own and that of its partner."""
    result = []
    for i, partner in enumerate(order):
        (own_mean, own_variance), (mean_, variance) = moments(features[i]), moments(features[partner])
        mean_ = shares[i] * own_mean + (1 - shares[i]) * mean_
        variance = shares[i] * own_variance + (1 - shares[i]) * variance
        result.append(content(features[i]) * (variance + 1e-5) ** 0.5 + mean_)
    return result


def with_content(features, order):
    """Every sample with the content of its partner."""
    result = []
    for i, partner in enumerate(order):
        center, variance = moments(features[i])
        result.append(content(features[partner]).detach() * (variance + 1e-5) ** 0.5 + center)
    return result


def classification(theta, samples, shares, order):
    restyled = with_style([featurize(theta, x) for x, _ in samples], shares, order)
    return mean(
        cross_entropy(head(theta, "classifier", z), y) for z, (_, y) in zip(restyled, samples, strict=True)
    )


def style(theta, samples, order):
    mixed = with_content([featurize(theta, x) for x, _ in samples], order)
    return mean(cross_entropy(head(theta, "style", z), y) for z, (_, y) in zip(mixed, samples, strict=True))


def adversarial(theta, samples, order):
    mixed = with_content([featurize(theta, x) for x, _ in samples], order)
    logits = [head(theta, "style", z) for z in mixed]
    return mean(mean(cross_entropy(row, k) for k in range(len(row))) for row in logits)


def only(theta, player):
    return {name: theta[name] for name in PLAYERS[player]}


def update(theta, adams, batches, draws, *, weight):
    """``draws`` are the shares of the own style and the partners, for each of the three passes."""
    samples = [(x, int(y)) for b in batches for x, y in zip(b.images, b.labels, strict=True)]
    (shares, first), (_, second), (_, third) = draws
    logged = {"loss": classification(theta, samples, shares, first)}
    moved = {}
    for player in ("featurizer", "classifier"):
        loss = classification(theta, samples, shares, first)
        moved.update(adam_step(only(theta, player), loss, adams[player]))
    theta = {**theta, **moved}
    logged["style"] = style(theta, samples, second)
    theta = {**theta, **adam_step(only(theta, "style"), logged["style"], adams["style"])}
    logged["adversarial"] = adversarial(theta, samples, third)
    if weight > 0:
        loss = weight * logged["adversarial"]
        theta = {**theta, **adam_step(only(theta, "featurizer"), loss, adams["featurizer"])}
    return theta, logged
