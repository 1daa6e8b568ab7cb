"""StarSSE-WO, number by number."""

from tests.reference.later import entries, risk


def squared_cosine(u, v):
    product = sum(a * b for a, b in zip(u, v, strict=True))
    lengths = [sum(a**2 for a in x) ** 0.5 for x in (u, v)]
    return (product / (lengths[0] * lengths[1])) ** 2


def weight_orthogonalisation(theta, member, start, images, labels, *, alpha, names):
    u, v = entries(theta, names), entries(member, names)
    if start is not None:
        origin = entries(start, names)
        u, v = ([a - b for a, b in zip(x, origin, strict=True)] for x in (u, v))
    cos2 = squared_cosine(u, v)
    nll = risk(theta, images, labels)
    return nll + alpha * cos2, {"nll": nll, "cos2": cos2}
