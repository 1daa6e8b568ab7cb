"""Where in a sum of inputs each member is seen: coefficients, masks and what they weigh in the loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "cut_masks",
    "descended",
    "drawn_coefficients",
    "drawn_orders",
    "linear_masks",
    "loss_weights",
    "realised",
]


def drawn_coefficients(
    alpha: int | float, members: int, samples: int
) -> Float[Tensor, "{members} {samples}"]:
    r"""What share each member has of a sample: one draw of a symmetric Dirichlet distribution per sample.

    Args:
        alpha: Its parameter :math:`\alpha`; for two members, that of a Beta distribution. With 0 or less, all are 1/M.
        members: M.
        samples: How many draws.

    Returns:
        In double precision: with a small alpha, many draws lie next to 0 or 1.
    """
    if alpha <= 0 or members == 1:
        return torch.full((members, samples), 1 / members, dtype=torch.float64)
    concentration = torch.full((samples, members), alpha, dtype=torch.float64)
    return torch.distributions.Dirichlet(concentration).sample().T.contiguous()


def drawn_orders(
    members: int, samples: int, repetition: int = 1, input_repetition: int | float = 0
) -> Int[Tensor, "{members} {samples}*{repetition}"]:
    """Which sample each member sees at each place of a batch that is repeated: its own random permutation of it.

    Args:
        members: How many rows.
        samples: Of the batch.
        repetition: How many times each member sees each sample.
        input_repetition: Share of the places where all members see the same sample, the last ones.
    """
    count = samples * repetition
    places = torch.randperm(count)
    # The number of the others is rounded down, but 10 * (1 - 0.9) is 1.
    own = int(round(count * (1 - input_repetition), 6))
    orders = [torch.cat([places[:own][torch.randperm(own)], places[own:]]) for _ in range(members)]
    return torch.stack(orders) % samples


def linear_masks(
    coefficients: Float[Tensor, "members samples"],
) -> Float[Tensor, "members samples 1 1 1"]:
    """Each member is seen everywhere, with its coefficient."""
    return coefficients[:, :, None, None, None]


def cut_masks(
    coefficients: Float[Tensor, "members samples"], inside: Bool[Tensor, "samples 1 rows columns"]
) -> Float[Tensor, "members samples 1 rows columns"]:
    """The first member is seen in the box, and the others around it, in proportion to their coefficients.

    Of two members, the second is seen around the box. One member is seen everywhere.
    """
    if len(coefficients) == 1:
        return torch.ones_like(inside, dtype=coefficients.dtype)[None]
    inside, others = inside.to(coefficients.dtype), coefficients[1:]
    total = others.sum(0)
    # If the first has all, the others share evenly what the roundings of the box have left.
    others = torch.where(total > 0, others / total, 1 / len(others))
    around = (1 - inside) * linear_masks(others)
    return torch.cat([inside[None].expand(1, *around.shape[1:]), around])


def realised(masks: Float[Tensor, "members samples 1 rows columns"]) -> Float[Tensor, "members samples"]:
    """The share that each member really has: the mean of its mask, which boxes at the frame make smaller."""
    return masks.mean((2, 3, 4))


def loss_weights(
    coefficients: Float[Tensor, "members samples"], r: int | float
) -> Float[Tensor, "members samples"]:
    r"""What the cross-entropy of each member weighs (Ramé et al., 2021).

    .. math:: w_i = M \, \frac{\kappa_i^{1 / r}}{\sum_j \kappa_j^{1 / r}}

    The sum over members is M. With :math:`r = 1` they are the coefficients, times M; the larger :math:`r`, the nearer
    they are to 1. A member that is not seen weighs 0.

    Example:
        >>> loss_weights(torch.tensor([[0.1], [0.9]]), 3).squeeze(1)
        tensor([0.6493, 1.3507])
    """
    powers = coefficients ** (1 / r)
    return len(coefficients) * powers / powers.sum(0)


def descended(probability: int | float, done: int | float) -> float:
    """A probability that falls to 0 in the last twelfth of a training, in a straight line.

    Args:
        probability: Its value before.
        done: The share of the training that is done.

    Example:
        >>> [descended(0.5, done) for done in (0.5, 0.9375, 1)]
        [0.5, 0.375, 0.0]
    """
    return float(probability * min(1, 12 * max(0, 1 - done)))
