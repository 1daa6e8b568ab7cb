"""Normalised difference: disagreement per error, so that weak members are not diverse by being weak."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mirepoix.diversity._disagreement import disagreement_matrix
from mirepoix.diversity._pairs import mean_over_pairs
from mirepoix.diversity._votes import check_predicted
from mirepoix.types import InputError

__all__ = ["normalised_difference", "normalised_difference_matrix"]


def normalised_difference(
    predicted: Int[Tensor, "members samples"],
    labels: Int[Tensor, " samples"],
    *,
    relative_to: Literal["larger", "second"] = "larger",
) -> Float[Tensor, ""]:
    r"""How often two members give different labels, in units of their error.

    .. math:: P(\hat y_i \ne \hat y_j) / \max(e_i, e_j), \qquad e_i = P(\hat y_i \ne y),

    averaged over pairs. Higher is more diverse. In [0, 2]; 0 for two members that never err. A fraction here:
    work on ensembles from one checkpoint prints 100 times it.

    Args:
        predicted: The class that each member predicts for each sample.
        labels: The true classes.
        relative_to: The error to divide by: the larger of the two, or that of the ``"second"`` member, which is
            compared with the first. That is not symmetric, so both orders of each pair are averaged; in
            :math:`[0, \infty]`, infinite if the second never errs and the first does.

    Raises:
        InputError: With fewer than two members, or without samples; for labels of another shape.

    Example:
        >>> normalised_difference(torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]), torch.tensor([0, 1, 2, 1]))
        tensor(1.)

    References:
        Fort et al. (2019), Deep ensembles: a loss landscape perspective, section 4, with ``"second"``;
        Sadrtdinov et al. (2023), To stay or not to stay in the pre-train basin, with ``"larger"``.
    """
    matrix = normalised_difference_matrix(predicted, labels, relative_to=relative_to)
    if relative_to == "second":
        matrix = (matrix + matrix.T) / 2
    return mean_over_pairs(matrix)


def normalised_difference_matrix(
    predicted: Int[Tensor, "members samples"],
    labels: Int[Tensor, " samples"],
    *,
    relative_to: Literal["larger", "second"] = "larger",
) -> Float[Tensor, "members members"]:
    """The normalised difference of each pair of members; 0 on the diagonal.

    Symmetric, unless it is relative to the second: then column j is divided by the error of member j.

    Args:
        predicted: The class that each member predicts for each sample.
        labels: The true classes.
        relative_to: As in `normalised_difference`.

    Raises:
        InputError: As in `normalised_difference`.

    Example:
        >>> predicted, labels = torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0]]), torch.tensor([0, 1, 2, 1])
        >>> normalised_difference_matrix(predicted, labels, relative_to="second")
        tensor([[0., 1.],
                [2., 0.]])
    """
    check_predicted(predicted)
    if labels.shape != predicted.shape[1:]:
        raise InputError(
            f"labels: expected shape {tuple(predicted.shape[1:])}, one per sample, got {tuple(labels.shape)}."
        )
    errors = (predicted != labels).sum(1) / len(labels)
    return normalise(disagreement_matrix(predicted), errors, relative_to)


def normalise(different: Tensor, errors: Tensor, relative_to: str = "larger") -> Tensor:
    """Disagreements divided by errors, once both are known."""
    match relative_to:
        case "larger":
            unit = torch.maximum(errors[:, None], errors)
        case "second":
            unit = errors.expand_as(different)
        case _:
            raise InputError(f"relative_to: expected 'larger' or 'second', got {relative_to!r}.")
    return torch.where(different == 0, 0.0, different / unit)  # 0 / 0 is 0: who never errs does not differ
