"""How far members lie from each other in weight space, and from their average."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._weight_blocks import Names, layer_of, weight_blocks
from mirepoix.types import InputError, Weights

__all__ = [
    "distance_to_average",
    "weight_distance_by_layer",
    "weight_distance_matrix",
    "weight_mean_square_matrix",
]


def weight_distance_matrix(
    thetas: Iterable[Weights], *, names: Names = None
) -> Float[Tensor, "members members"]:
    r"""The Euclidean distance :math:`\lVert \theta_i - \theta_j \rVert_2` of each pair of members.

    Higher is more diverse. Symmetric, 0 on the diagonal, NaN where either member holds a NaN or both the same
    infinity. For each pair the same as `mirepoix.weights.distance`, for all pairs from one reading, and as exact for
    members that nearly agree. Over the float tensors, without integers and without the running mean and variance of
    batch norm.

    Args:
        thetas: The members: mappings of torch tensors or NumPy arrays, in memory or lazy; each tensor is read once.
        names: Which tensors: a rule for their names, such as ``lambda name: name.startswith("layer4.")``, or their
            names, such as ``[name for name, x in theta.items() if x.ndim == 4]`` for the convolutions. Statistics of
            batch norm count only if they are named one by one.

    Returns:
        Numbers computed in float64.

    Raises:
        InputError: With fewer than two members; when they differ in names, shapes or kinds; for names that no float
            tensor has.
        TypeError: When torch and NumPy members are mixed, or something is neither.

    Example:
        >>> weight_distance_matrix([{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([4.0, 0.0])}])
        tensor([[0., 5.],
                [5., 0.]], dtype=torch.float64)
    """
    squares, _ = _by_layer(thetas, names)
    return torch.stack(list(squares.values())).sum(0).sqrt()


def weight_mean_square_matrix(
    thetas: Iterable[Weights], *, names: Names = None
) -> Float[Tensor, "members members"]:
    r"""The mean squared difference of weights, :math:`\frac1P \lVert \theta_i - \theta_j \rVert_2^2`, of each pair.

    Higher is more diverse. As `weight_distance_matrix`, but comparable between stages of different size. NaN when
    all tensors are empty.

    Args:
        thetas: As in `weight_distance_matrix`.
        names: As in `weight_distance_matrix`.

    Raises:
        InputError: As in `weight_distance_matrix`.
        TypeError: As in `weight_distance_matrix`.

    Example:
        >>> weight_mean_square_matrix([{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([4.0, 0.0])}])
        tensor([[ 0.0000, 12.5000],
                [12.5000,  0.0000]], dtype=torch.float64)
    """
    squares, counts = _by_layer(thetas, names)
    return torch.stack(list(squares.values())).sum(0) / sum(counts.values())


def weight_distance_by_layer(
    thetas: Iterable[Weights], *, names: Names = None
) -> dict[str, Float[Tensor, "members members"]]:
    """The matrix of distances of each layer: of the tensors whose names agree up to the last dot.

    Args:
        thetas: As in `weight_distance_matrix`.
        names: As in `weight_distance_matrix`.

    Raises:
        InputError: As in `weight_distance_matrix`.
        TypeError: As in `weight_distance_matrix`.

    Example:
        >>> theta = {"fc.weight": torch.eye(2), "fc.bias": torch.ones(2), "scale": torch.ones(())}
        >>> list(weight_distance_by_layer([theta, theta]))
        ['fc', 'scale']
    """
    squares, _ = _by_layer(thetas, names)
    return {layer: square.sqrt() for layer, square in squares.items()}


def distance_to_average(thetas: Iterable[Weights], *, names: Names = None) -> Float[Tensor, " members"]:
    r"""The distance of each member from the uniform average of all, :math:`\lVert \theta_i - \bar\theta \rVert_2`.

    The average is the exact one, before it is rounded to the dtype of the members. Its mean square over members is
    that of all distances between members, halved: :math:`\frac1M \sum_i \lVert \theta_i - \bar\theta \rVert^2 =
    \frac{1}{2 M^2} \sum_{ij} \lVert \theta_i - \theta_j \rVert^2`. NaN for all if one holds a NaN.

    Args:
        thetas: As in `weight_distance_matrix`; one member is at distance 0.
        names: As in `weight_distance_matrix`.

    Raises:
        InputError: As in `weight_distance_matrix`.
        TypeError: As in `weight_distance_matrix`.

    Example:
        >>> distance_to_average([{"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([4.0, 0.0])}])
        tensor([2.5000, 2.5000], dtype=torch.float64)
    """
    squares = [_from_mean(block).square_().sum(1) for _, block in weight_blocks(thetas, names=names)]
    return torch.stack(squares).sum(0).sqrt()


def _by_layer(thetas: Iterable[Weights], names: Names) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Squared distances of all pairs, and numbers of weights, by layer."""
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, block in weight_blocks(thetas, names=names):
        if len(block) < 2:
            raise InputError(f"a distance needs two members, got {len(block)}.")
        square, layer = _squared_distances(block), layer_of(name)
        squares[layer] = squares[layer] + square if layer in squares else square
        counts[layer] = counts.get(layer, 0) + block.shape[1]
    return squares, counts


def _from_mean(block: Tensor) -> Tensor:
    gaps = block - block[0]  # first, as this is exact for weights that nearly agree, and their mean is not
    return gaps.sub_(gaps.mean(0))


def _squared_distances(block: Tensor) -> Tensor:
    """Of all pairs of rows."""
    gaps = _from_mean(block)
    gram = gaps @ gaps.T
    sizes = gram.diagonal()
    sums = sizes[:, None] + sizes
    square = sums - 2 * gram
    # Where two members are much nearer to each other than to the mean, or one holds a NaN, which is then in the mean,
    # the pair is computed by itself. Where none differs from the mean, zero is exact.
    unsure = (~(square > 1e-6 * sums) & (sums != 0)).triu(1)
    square = square.triu(1)
    for i in unsure.any(1).nonzero().flatten().tolist():
        others = unsure[i].nonzero().flatten()
        square[i, others] = (block[others] - block[i]).square_().sum(1)
    square = square + square.T
    if not bool(sizes.isfinite().all()):
        square.diagonal().copy_((block - block).sum(1))
    return square
