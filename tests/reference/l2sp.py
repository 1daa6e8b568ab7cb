"""L2-SP, number by number."""

from tests.reference.later import entries, risk


def l2sp(theta, anchor, images, labels, *, alpha):
    names = ["featurizer.conv.weight", "featurizer.conv.bias"]
    distance = sum((a - b) ** 2 for a, b in zip(entries(theta, names), entries(anchor, names), strict=True))
    nll = risk(theta, images, labels)
    return nll + alpha / 2 * distance, {"nll": nll, "squared_distance": distance}
