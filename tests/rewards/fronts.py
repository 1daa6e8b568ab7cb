"""The published tables, as fronts: lambda is the weight of the first expert."""

from mirepoix.rewards import RewardFront

NEWS = [
    (0.984, -0.788),
    (1.109, -0.785),
    (1.197, -0.777),
    (1.285, -0.862),
    (1.394, -1.082),
    (1.459, -1.080),
    (1.513, -1.118),
    (1.569, -1.212),
    (1.653, -1.325),
    (1.728, -1.315),
    (1.781, -1.526),
]
CAPTIONING = [
    (0.8234, 0.6100),
    (0.8265, 0.6095),
    (0.8309, 0.6093),
    (0.8342, 0.6096),
    (0.8369, 0.6095),
    (0.8395, 0.6095),
    (0.8418, 0.6082),
    (0.8440, 0.6069),
    (0.8460, 0.6054),
    (0.8486, 0.6047),
    (0.8497, 0.6038),
]
HUMANOID = [  # cautious, risky
    (1461, 6447),
    (1964, 6644),
    (2379, 6697),
    (2830, 6600),
    (3131, 6458),
    (3319, 6265),
    (3567, 6169),
    (3766, 6040),
    (3921, 5925),
    (4040, 5837),
    (4062, 5664),
]


def table_front(rows, first="first", second="second", **options):
    """A front of two experts named as their rewards, at equal steps of the weight of the first."""
    last = len(rows) - 1
    return RewardFront(
        experts=(first, second),
        rewards=(first, second),
        coefficients=tuple({first: i / last, second: 1 - i / last} for i in range(len(rows))),
        means=rows,
        **options,
    )
