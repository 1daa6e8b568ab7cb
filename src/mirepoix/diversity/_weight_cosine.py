"""The angle between members in weight space, from the origin or from their common start."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._pairs import mean_over_pairs
from mirepoix.diversity._weight_blocks import Names, layer_of, weight_blocks
from mirepoix.types import InputError, Weights

__all__ = ["weight_cosine", "weight_cosine_by_layer", "weight_cosine_matrix"]


def weight_cosine(
    thetas: Iterable[Weights], *, relative_to: Weights | None = None, names: Names = None
) -> Float[Tensor, ""]:
    r"""How much the weights of members point the same way, the mean over pairs of

    .. math:: \cos(\theta_i, \theta_j) = \frac{\theta_i^\top \theta_j}{\lVert \theta_i \rVert \lVert \theta_j \rVert}.

    Lower is more diverse. In [-1, 1]. Members fine-tuned from one start have nearly 1, as they share it: pass it as
    ``relative_to`` for the cosine of the task vectors :math:`\theta_i - \theta_0`. NaN for weights that are all zero,
    and for members that did not move from ``relative_to``. Over the float tensors, without integers and without the
    running mean and variance of batch norm.

    Args:
        thetas: The members: mappings of torch tensors or NumPy arrays, in memory or lazy; each tensor is read once.
        relative_to: Weights to subtract first, usually the common start :math:`\theta_0`.
        names: Which tensors: a rule for their names, such as ``lambda name: name.startswith("layer4.")``, or their
            names, such as ``[name for name, x in theta.items() if x.ndim == 4]`` for the convolutions. Statistics of
            batch norm count only if they are named one by one.

    Returns:
        A number, computed in float64.

    Raises:
        InputError: With fewer than two members; when they differ in names, shapes or kinds; for names that no float
            tensor has; when ``relative_to`` does not hold what is compared.
        TypeError: When torch and NumPy members are mixed, or something is neither.

    Example:
        >>> start = {"w": torch.tensor([10.0, 10.0])}
        >>> a, b = {"w": torch.tensor([11.0, 10.0])}, {"w": torch.tensor([10.0, 11.0])}
        >>> print(f"{weight_cosine([a, b]):.4f} {weight_cosine([a, b], relative_to=start):.4f}")
        0.9955 0.0000

    References:
        Ilharco et al. (2023), Editing models with task arithmetic, for the cosine of task vectors.
    """
    return mean_over_pairs(weight_cosine_matrix(thetas, relative_to=relative_to, names=names))


def weight_cosine_matrix(
    thetas: Iterable[Weights], *, relative_to: Weights | None = None, names: Names = None
) -> Float[Tensor, "members members"]:
    """The cosine of each pair of members, symmetric; 1 on the diagonal, NaN for weights that are all zero.

    Args:
        thetas: As in `weight_cosine`.
        relative_to: As in `weight_cosine`.
        names: As in `weight_cosine`.

    Raises:
        InputError: As in `weight_cosine`.
        TypeError: As in `weight_cosine`.

    Example:
        >>> weight_cosine_matrix([{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([4.0, 3.0])}])
        tensor([[1.0000, 0.9600],
                [0.9600, 1.0000]], dtype=torch.float64)
    """
    grams = _grams(thetas, relative_to, names)
    return _cosines(torch.stack(list(grams.values())).sum(0))


def weight_cosine_by_layer(
    thetas: Iterable[Weights], *, relative_to: Weights | None = None, names: Names = None
) -> dict[str, Float[Tensor, "members members"]]:
    """The matrix of cosines of each layer: of the tensors whose names agree up to the last dot.

    Args:
        thetas: As in `weight_cosine`.
        relative_to: As in `weight_cosine`.
        names: As in `weight_cosine`.

    Raises:
        InputError: As in `weight_cosine`.
        TypeError: As in `weight_cosine`.

    Example:
        >>> theta = {"fc.weight": torch.eye(2), "fc.bias": torch.ones(2), "scale": torch.ones(())}
        >>> list(weight_cosine_by_layer([theta, theta]))
        ['fc', 'scale']
    """
    return {layer: _cosines(gram) for layer, gram in _grams(thetas, relative_to, names).items()}


def _grams(thetas: Iterable[Weights], base: Weights | None, names: Names) -> dict[str, Tensor]:
    """Inner products of all pairs, by layer."""
    grams: dict[str, Tensor] = {}
    for name, block in weight_blocks(thetas, names=names, base=base):
        if len(block) < 2:
            raise InputError(f"a cosine needs two members, got {len(block)}.")
        gram, layer = block @ block.T, layer_of(name)
        grams[layer] = grams[layer] + gram if layer in grams else gram
    return grams


def _cosines(gram: Tensor) -> Tensor:
    size = gram.diagonal().sqrt()
    # Cosines never leave [-1, 1]; rounding can, by a bit. NaN, zero by zero, stays.
    upper = (gram / size[:, None] / size).clamp(-1, 1).triu(1)
    return upper + upper.T + torch.diag(size / size)
