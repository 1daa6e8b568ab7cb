"""Three ways to make one prediction of several; they differ in what is averaged.

The average of logits is the default of the thesis: its softmax is the normalised geometric mean of the
members' probabilities. Logits in half precision are widened to float32, and so is the result.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mirepoix.types import InputError

__all__ = ["average_logits", "average_probabilities", "vote"]


def average_logits(
    logits: Float[Tensor, "members samples classes"],
    coefficients: Sequence[float] | None = None,
) -> Float[Tensor, "samples classes"]:
    r"""The mean over members of their logits, or their weighted mean.

    .. math:: \bar z = \frac1M \sum_i z_i \quad\text{or}\quad \bar z = \sum_i \lambda_i z_i.

    A member with larger logits weighs more: confidence counts.

    Args:
        logits: Of each member.
        coefficients: :math:`\lambda_i`, none of them negative, with sum one; equal by default.

    Raises:
        InputError: Without members; for coefficients that do not fit.

    Example:
        >>> average_logits(torch.tensor([[[0.0, 2.0]], [[4.0, 0.0]]]))
        tensor([[2., 1.]])
    """
    logits = _widened(logits)
    if coefficients is None:
        return logits.mean(0)
    shares = _shares(logits, coefficients)
    present = shares.flatten() > 0  # minus infinity times nothing is no number
    return (shares[present] * logits[present]).sum(0)


def average_probabilities(
    logits: Float[Tensor, "members samples classes"],
    coefficients: Sequence[float] | None = None,
) -> Float[Tensor, "samples classes"]:
    r"""The logarithm of the mean over members of their probabilities, or of their weighted mean.

    .. math:: \log \bar p = \log \sum_i \lambda_i \mathrm{softmax}(z_i).

    The result is a log-probability, so it can stand wherever logits can: the softmax of it is
    :math:`\bar p`. It is computed without leaving the logarithm, so tiny probabilities do not vanish.

    Args:
        logits: Of each member.
        coefficients: :math:`\lambda_i`, none of them negative, with sum one; 1/M by default.

    Raises:
        InputError: Without members; for coefficients that do not fit.

    Example:
        >>> logits = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
        >>> average_probabilities(logits).exp()
        tensor([[0.6000, 0.4000]])
    """
    log_p = _widened(logits).log_softmax(-1)
    if coefficients is None:
        return log_p.logsumexp(0) - math.log(len(log_p))
    shares = _shares(log_p, coefficients)
    present = shares.flatten() > 0  # minus infinity times nothing is no number
    return (log_p[present] + shares[present].log()).logsumexp(0)


def vote(logits: Float[Tensor, "members samples classes"]) -> Int[Tensor, " samples"]:
    """The class that most members predict.

    Each member votes for its largest logit (the first class among equal logits). A tie goes to the class
    with the largest sum of probabilities, and a tie there, up to rounding, to the first class.

    Args:
        logits: Of each member.

    Returns:
        The class of each sample, not a score: a vote has no logits.

    Raises:
        InputError: Without members, or when the largest logit of a member is NaN or infinite.

    Example:
        >>> vote(torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[9.0, 0.0]]]))
        tensor([1])
    """
    logits = _widened(logits)
    finite = logits.amax(-1).isfinite().all(-1)  # (members,)
    if not finite.all():
        member = int((~finite).nonzero()[0])
        raise InputError(f"member {member} cannot vote: some of its largest logits are NaN or infinite.")
    votes = one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)  # (samples, classes)
    elected = votes == votes.amax(-1, keepdim=True)
    support = logits.softmax(-1).sum(0).where(elected, 0)
    # Sums that are equal but for their rounding are a tie, or the order of the members would decide it.
    rounding = 4 * len(logits) * torch.finfo(support.dtype).eps
    return (support >= (1 - rounding) * support.amax(-1, keepdim=True)).int().argmax(-1)


def _widened(logits: Tensor) -> Tensor:
    if logits.ndim != 3 or len(logits) == 0:
        raise InputError(
            "expected logits of shape (members, samples, classes) with at least one member, "
            f"got {tuple(logits.shape)}."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _shares(logits: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The coefficients, (members, 1, 1)."""
    values = [float(value) for value in coefficients]
    total = math.fsum(values)
    if len(values) != len(logits) or not min(values, default=0) >= 0 or not abs(total - 1) <= 1e-6:
        raise InputError(
            f"coefficients: expected one number for each of {len(logits)} members, none negative, with sum 1, got "
            f"{values}. Divide them by their sum."
        )
    return logits.new_tensor(values)[:, None, None]
