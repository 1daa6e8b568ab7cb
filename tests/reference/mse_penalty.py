"""SSE-MSE, number by number."""

from tests.reference.later import risk
from tests.reference.plain import mean
from tests.reference.rtd_penalty import LAYERS


def mse_penalty(theta, anchor, images, labels, *, alpha, layers):
    mse = 0
    for name, weight in layers.items():
        seen = LAYERS[name]
        squares = [
            (a - b) ** 2
            for image in images
            for a, b in zip(seen(theta, image), seen(anchor, image), strict=True)
        ]
        mse = mse + weight * mean(squares)
    nll = risk(theta, images, labels)
    return nll + alpha * mse, {"nll": nll, "mse": mse}
