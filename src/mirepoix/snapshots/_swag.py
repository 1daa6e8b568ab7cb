"""A Gaussian around one solution, from the weights that one run passes through: SWAG."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirepoix.seeds import generator
from mirepoix.types import InputError, Weights

__all__ = ["SWAG"]

STATISTICS = ("running_mean", "running_var")
LEAST_VARIANCE = 1e-30


class SWAG:
    r"""Members drawn from a Gaussian around the iterates of one run (Maddox et al., 2019).

    With :math:`\bar\theta_i` the mean of the first :math:`i` of :math:`n` iterates, a member is

    .. math:: \theta = \bar\theta_n + \sqrt{s} \, \Big( \Sigma^{1/2} z_1 + \frac{1}{\sqrt{R - 1}} D z_2 \Big), \qquad
        z_1, z_2 \sim \mathcal{N}(0, I)

    where :math:`\Sigma` is diagonal, :math:`\frac{1}{n} \sum_i \theta_i^2 - \bar\theta_n^2` (never below 1e-30), and
    the :math:`R` columns of :math:`D` are the deviations :math:`\theta_i - \bar\theta_i` of the last ``rank`` iterates,
    each from the mean when it came. :math:`R` is the number of those that there are, not the most that there could be,
    in which public implementations differ. With :math:`s = 1/2`, the covariance is the mean of the diagonal one and
    the one of low rank.

    A local ensemble takes a converged member 1, goes on from there with a constant and rather large learning rate, and
    collects a snapshot at every check, once per epoch in the paper:
    ``SWAG(snapshots(train(theta_1, split, run.with_(collect="snapshots"))).values())``, with
    `mirepoix.training.snapshots`. Iterates are read once, one after the other.

    What is sampled are the floating-point weights. **Running statistics of batch norm are not**: they are the mean of
    those of the iterates, for the mean and for all samples, and fit none of them. Measure them again for each, with
    `mirepoix.merging.reestimate_batch_norm` and training images. Integers are those of the last iterate.

    Sums are in float64, deviations are kept in the dtype of the weights (float32 at least), and results are rounded
    once, to the dtypes of the first iterate. It holds the weights ``rank`` times, and twice in float64.

    Args:
        iterates: Two or more, of one run, earliest first; torch tensors or NumPy arrays.
        rank: The most columns of :math:`D`, 20 as in the paper; 0 leaves the term out, which with a scale of 1 is the
            diagonal SWAG of the paper.

    Raises:
        InputError: For fewer than two iterates, other names or shapes than in the first one, or weights that are not
            finite; for a rank of 1, or below 0.

    Example:
        >>> import torch
        >>> swag = SWAG([{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([3.0, 5.0])}])
        >>> swag.mean()
        {'w': tensor([2., 5.])}
        >>> swag.sample(seed=0)["w"][1]
        tensor(5.)

    References:
        Maddox et al. (2019), A simple baseline for Bayesian uncertainty in deep learning, section 3.2 and algorithm 1.
    """

    def __init__(self, iterates: Iterable[Weights], *, rank: int = 20) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 or rank == 1:
            raise InputError(
                f"SWAG needs rank to be 0 or a whole number from 2, got {rank!r}: with R columns it divides by R - 1."
            )
        if isinstance(iterates, Mapping):
            raise InputError(
                "SWAG needs the weights of several iterates, got one mapping. Split what the collector 'snapshots' "
                "returned: snapshots(theta).values()."
            )
        self.count = 0
        """How many iterates there were."""
        self._like: dict[str, Tensor] = {}  # the first iterate, without its values
        self._means: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}  # of deviations from the mean, added up
        self._deviations: deque[dict[str, Tensor]] = deque(maxlen=rank)
        self._integers: dict[str, Tensor] = {}
        for iterate in iterates:
            self._add({name: _tensor(iterate[name]) for name in iterate})
        if self.count < 2:
            raise InputError(
                f"SWAG needs at least 2 iterates, got {self.count}: of fewer there is no spread. Check more often."
            )

    @property
    def rank(self) -> int:
        """R, the number of columns of the deviations that there are."""
        return len(self._deviations)

    def mean(self) -> dict[str, Tensor]:
        """The mean of the iterates, which is their moving average; on the CPU."""
        return {
            name: self._means[name].to(like.dtype) if name in self._means else self._integers[name].clone()
            for name, like in self._like.items()
        }

    def sample(self, seed: int, scale: float = 0.5) -> dict[str, Tensor]:
        r"""One member; another seed gives another, independent one.

        Args:
            seed: Of the draw.
            scale: :math:`s`, which multiplies the covariance: 1/2 in the paper, smaller for members nearer to the
                mean, 0 for the mean.

        Returns:
            Weights on the CPU, in the dtypes of the iterates, with running statistics that are to be measured again.

        Raises:
            InputError: For a scale that is negative or not finite.
        """
        if not 0 <= scale < math.inf:
            raise InputError(
                f"SWAG needs scale to be a finite number of 0 or more, got {scale}; 0.5 is usual."
            )
        random = generator("swag", seed)
        columns = torch.randn(self.rank, generator=random, dtype=torch.float64).tolist()
        theta = self.mean()
        for name in sorted(self._squares):
            deviation = (self._squares[name] / self.count).clamp(min=LEAST_VARIANCE).sqrt()
            deviation *= torch.randn(deviation.shape, generator=random, dtype=torch.float64)
            for z, column in zip(columns, self._deviations, strict=True):
                deviation += z / math.sqrt(self.rank - 1) * column[name].double()
            drawn = self._means[name] + math.sqrt(scale) * deviation
            theta[name] = drawn.to(self._like[name].dtype)
        return theta

    def _add(self, theta: Mapping[str, Tensor]) -> None:
        """One more iterate: the moments by Welford's recursion, which loses no digits where the mean is large."""
        if not self.count:
            self._like = {name: torch.empty_like(value, device="meta") for name, value in theta.items()}
        _check(theta, self._like, self.count)
        self.count += 1
        self._integers = {
            name: value.clone() for name, value in theta.items() if not value.is_floating_point()
        }
        column = {}
        for name, value in theta.items():
            if name in self._integers:
                continue
            wide = value.double()
            mean = self._means.setdefault(name, torch.zeros_like(wide))
            before = wide - mean
            mean += before / self.count
            if name.endswith(STATISTICS):
                continue
            after = wide - mean
            self._squares.setdefault(name, torch.zeros_like(wide)).addcmul_(before, after)
            if self._deviations.maxlen:
                column[name] = after.to(torch.promote_types(value.dtype, torch.float32))
        if self._deviations.maxlen:
            self._deviations.append(column)


def _tensor(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
    return tensor.detach().cpu()


def _check(theta: Mapping[str, Tensor], like: Mapping[str, Tensor], place: int) -> None:
    """The names and shapes of the first iterate, all finite."""
    for name in (*like, *theta):
        if name not in like or name not in theta or theta[name].shape != like[name].shape:
            here, first = (
                f"of shape {tuple(each[name].shape)}" if name in each else "missing" for each in (theta, like)
            )
            raise InputError(
                f"SWAG: iterate {place} is of another network: {name!r} is {here} there and {first} in iterate 0. Give "
                "the snapshots of one run."
            )
        if theta[name].is_floating_point() != like[name].is_floating_point():
            raise InputError(
                f"SWAG: {name!r} is {theta[name].dtype} in iterate {place} and {like[name].dtype} in iterate 0."
            )
        if theta[name].is_floating_point() and not bool(theta[name].isfinite().all()):
            raise InputError(
                f"SWAG: iterate {place} holds NaN or infinity in {name!r}; the run diverged, take a smaller learning "
                "rate."
            )
