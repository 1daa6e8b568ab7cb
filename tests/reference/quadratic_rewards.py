"""Quadratic rewards with diagonal Hessians, and their best points by a search."""


class Quadratic:
    """``top - sum_j eta_j (theta_j - best_j)^2``."""

    def __init__(self, best, etas, top=0.0):
        self.best, self.etas, self.top = list(best), list(etas), top

    def __call__(self, theta):
        return self.top - sum(
            eta * (t - b) ** 2 for eta, t, b in zip(self.etas, theta, self.best, strict=True)
        )


def mixed(thetas, shares):
    return [sum(s * theta[j] for s, theta in zip(shares, thetas, strict=True)) for j in range(len(thetas[0]))]


def preferred(rewards, weights, theta):
    return sum(w * reward(theta) for w, reward in zip(weights, rewards, strict=True))


def best_mixture_of_two(rewards, weights, rounds=200):
    """The best single coefficient of the second expert, by ternary search on a concave function."""
    low, high = 0.0, 1.0
    thetas = [reward.best for reward in rewards]

    def value(share):
        return preferred(rewards, weights, mixed(thetas, [1 - share, share]))

    for _ in range(rounds):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if value(left) < value(right):
            low = left
        else:
            high = right
    return (low + high) / 2


def best_point(rewards, weights):
    """Coordinate by coordinate, where the derivative is zero."""
    dimensions = len(rewards[0].best)
    point = []
    for j in range(dimensions):
        top = sum(w * r.etas[j] * r.best[j] for w, r in zip(weights, rewards, strict=True))
        bottom = sum(w * r.etas[j] for w, r in zip(weights, rewards, strict=True))
        point.append(top / bottom)
    return point
