"""How far two sets of features lie from each other: sample by sample, as clouds, or in their shape."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.seeds import stream
from mirepoix.types import InputError

__all__ = ["representation_mse", "sliced_wasserstein", "wasserstein"]

_ENTRIES = 2**22  # numbers at once


def representation_mse(
    x: Float[Tensor, "samples features"], y: Float[Tensor, "samples features"]
) -> Float[Tensor, ""]:
    r"""The mean squared difference of two sets of features of the same samples.

    .. math:: \frac{1}{nd} \sum_{a,k} (x_{ak} - y_{ak})^2.

    Higher is more different; from 0 on. It sees scale, rotation and the order of channels, unlike `cka`: compare
    members of one start, at one layer.

    Args:
        x: Features of one network.
        y: Features of another on the same samples, in the same order.

    Returns:
        A number, computed in float64.

    Raises:
        InputError: When the shapes differ, or without samples.

    Example:
        >>> representation_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 6.0]]))
        tensor(8., dtype=torch.float64)
    """
    if x.shape != y.shape or x.numel() == 0:
        raise InputError(
            "a mean squared difference needs features of the same samples and width, one at least, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    return (_wide(x) - _wide(y)).square().mean()


def wasserstein(
    x: Float[Tensor, "samples features"],
    y: Float[Tensor, "others widths"],
    *,
    kind: Literal["cloud", "diagram"] = "cloud",
    degrees: Sequence[int] = (0, 1),
    most: int = 2000,
) -> Float[Tensor, ""]:
    r"""The Wasserstein distance between two sets of features, as clouds of points or as shapes.

    As clouds (``kind="cloud"``), the cheapest way to move one onto the other, whatever sample each point stands for:

    .. math:: W_2 = \Big( \min_\pi \frac1n \sum_a \lVert x_a - y_{\pi(a)} \rVert^2 \Big)^{1/2}.

    As shapes (``kind="diagram"``), the sum over ``degrees`` of the 1-Wasserstein distance between the persistence
    diagrams of the Vietoris-Rips complexes of the two clouds: how the clusters (degree 0) and loops (degree 1) of one
    can be matched with those of the other or with none, at the largest change of birth or death of each. The one class
    that never dies is left out. Shapes do not see rotation, widths and shifts, and do see scale.

    Higher is more different; from 0 on. NaN or infinity in the features is an error.

    Args:
        x: Features of one network.
        y: Features of another. As clouds: as many samples, of the same width. As shapes: any.
        kind: What is compared.
        degrees: As shapes, degrees of homology that count.
        most: The largest number of samples: time grows with its cube. Beyond it, draw some of the samples, or use
            `sliced_wasserstein`.

    Returns:
        A number, computed in float64, on the CPU.

    Raises:
        InputError: For clouds of different sizes or widths; with more samples than ``most``, or none; for features
            that are not finite; when gudhi is not installed and shapes are asked for.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> wasserstein(x, x.flip(0) + torch.tensor([3.0, 4.0]))
        tensor(5., dtype=torch.float64)
        >>> round(float(wasserstein(x, 3 * x, kind="diagram")), 3)  # three deaths at 1 and 3, and two loops that vanish
        6.828

    References:
        Peyré and Cuturi (2019), Computational optimal transport, proposition 2.1; Cohen-Steiner et al. (2010),
        Lipschitz functions have L_p-stable persistence, for diagrams.
    """
    if kind not in ("cloud", "diagram"):
        raise InputError(f"kind must be 'cloud' or 'diagram', got {kind!r}.")
    _check_features(x, y)
    if kind == "cloud":
        _check_clouds(x, y)
    for cloud in (x, y):
        if not 0 < len(cloud) <= most:
            raise InputError(
                f"expected 1 to {most} samples, got {len(cloud)}. Draw some of them, raise `most` and wait (time grows "
                "with the cube), or use sliced_wasserstein."
            )
    a, b = _finite(x).numpy(), _finite(y).numpy()
    total = _between_clouds(a, b) if kind == "cloud" else _between_shapes(a, b, degrees)
    return torch.tensor(total, dtype=torch.float64)


def sliced_wasserstein(
    x: Float[Tensor, "samples features"],
    y: Float[Tensor, "samples features"],
    *,
    directions: int = 1000,
    seed: int = 0,
) -> Float[Tensor, ""]:
    r"""The Wasserstein distance between two clouds seen from many directions: for many samples.

    .. math:: SW_2 = \Big( \frac1L \sum_{l=1}^L W_2^2(\langle x, u_l \rangle, \langle y, u_l \rangle) \Big)^{1/2},

    with :math:`u_l` drawn uniformly from the unit sphere; on a line the cheapest way is in sorted order. Higher is
    more different; from 0 on, at most `wasserstein`, and in :math:`d` dimensions about :math:`\sqrt d` times smaller:
    clouds that differ by a shift :math:`v` have about :math:`\lVert v \rVert / \sqrt d`.

    Args:
        x: Features of one network.
        y: Features of another: as many samples, of the same width.
        directions: How many, :math:`L`.
        seed: Of the directions.

    Returns:
        A number, computed in float64.

    Raises:
        InputError: For clouds of different sizes or widths, or without samples; for features that are not finite;
            with fewer than one direction.

    Example:
        >>> x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
        >>> print(f"{sliced_wasserstein(x, x + 3, directions=10):.3f}")
        3.000

    References:
        Bonneel et al. (2015), Sliced and Radon Wasserstein barycenters of measures.
    """
    _check_features(x, y)
    _check_clouds(x, y)
    if directions < 1:
        raise InputError(f"expected at least one direction, got {directions}.")
    drawn = stream("sliced_wasserstein", seed).standard_normal((directions, x.shape[1]))
    units = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    units = units.to(x.device, _wide(x).dtype)
    total = units.new_zeros(())
    a, b = _finite(x, move=False), _finite(y, move=False)
    step = max(1, _ENTRIES // len(x))
    for start in range(0, directions, step):
        part = units[start : start + step]
        p, q = (part @ cloud.T for cloud in (a, b))  # (directions, samples)
        total += (p.sort().values - q.sort().values).square().sum()
    return (total / (directions * len(x))).sqrt()


def _check_features(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2:
        raise InputError(
            f"expected features of shape (samples, features), got shapes {tuple(x.shape)} and {tuple(y.shape)}. "
            "Flatten or pool what has more axes, as `x.flatten(1)`."
        )


def _check_clouds(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"clouds must lie in one space, got features of widths {x.shape[1]} and {y.shape[1]}. Compare layers of "
            "one width, or shapes: wasserstein(..., kind='diagram')."
        )
    if len(x) != len(y) or len(x) == 0:
        raise InputError(
            f"clouds must have as many samples as each other, got {len(x)} and {len(y)}. Draw as many of both."
        )


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)


def _finite(x: Tensor, *, move: bool = True) -> Tensor:
    if not bool(x.isfinite().all()):
        raise InputError("features must be finite, got NaN or infinity.")
    return x.detach().cpu().double() if move else _wide(x)


def _between_clouds(x: Any, y: Any) -> float:
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    # Inner products decide who goes where, as squared norms are paid in any case; the way itself is measured exactly.
    # From the common mean, so that clouds far from the origin keep their digits.
    mean = x.mean(0)
    rows, columns = linear_sum_assignment((x - mean) @ (y - y.mean(0)).T, maximize=True)
    return float(np.sqrt(np.square(x[rows] - y[columns]).sum(1).mean()))


def _between_shapes(x: Any, y: Any, degrees: Sequence[int]) -> float:
    try:
        from gudhi.sklearn import RipsPersistence  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "persistence diagrams need gudhi (and scikit-learn): pip install 'mirepoix[analysis]'."
        ) from error
    from scipy.spatial.distance import pdist, squareform  # type: ignore[import-untyped]

    if not degrees or any(degree not in (0, 1, 2) for degree in degrees):
        raise InputError(f"degrees must be some of 0, 1 and 2, got {list(degrees)}.")
    # Distances of our own, as gudhi takes clouds in few dimensions another way, through another complex.
    rips = RipsPersistence(homology_dimensions=list(degrees), input_type="full distance matrix")
    first, second = (rips.fit_transform([squareform(pdist(cloud))])[0] for cloud in (x, y))
    return sum(_between_diagrams(a, b) for a, b in zip(first, second, strict=True))


def _between_diagrams(a: Any, b: Any) -> float:
    """The exact 1-Wasserstein distance for the largest change of a coordinate: an assignment."""
    from scipy.optimize import linear_sum_assignment

    a, b = (points[np.isfinite(points).all(1)] for points in (a, b))
    # Each point meets a point, or the diagonal at half its persistence. A pair costs no more than both on the diagonal,
    # so that the points alone can be assigned, and those left over meet the diagonal.
    left, right = ((points[:, 1] - points[:, 0]) / 2 for points in (a, b))
    apart = left[:, None] + right
    cost = np.minimum(np.abs(a[:, None] - b[None]).max(-1), apart)
    rows, columns = linear_sum_assignment(apart - cost, maximize=True)
    paired = cost[rows, columns].sum()
    return float(paired + np.delete(left, rows).sum() + np.delete(right, columns).sum())
