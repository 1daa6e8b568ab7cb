"""Centred kernel alignment: whether two networks see the same samples as alike."""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._pairs import mean_over_pairs
from mirepoix.types import InputError

__all__ = ["MinibatchCKA", "cka", "cka_matrix", "ckac"]

Features: TypeAlias = Float[Tensor, "members samples features"] | Sequence[Float[Tensor, "_ _"]]
Kernel: TypeAlias = Literal["linear", "rbf"]

_ROWS = 4096  # samples that are widened at once for products of features
_TILE = 2**23  # entries of the tiles of all Gram matrices together: 64 MiB
_ZERO = 1e-12  # a variance below that part of what it was computed from is rounding


def cka(
    x: Float[Tensor, "samples features"],
    y: Float[Tensor, "samples others"],
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 0.5,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    r"""Likeness of two sets of features of the same samples, whatever their rotation and scale.

    With the Gram matrices :math:`K_{ab} = k(x_a, x_b)` and :math:`L_{ab} = k(y_a, y_b)`,

    .. math:: \text{CKA} = \frac{\text{HSIC}(K, L)}{\sqrt{\text{HSIC}(K, K)\, \text{HSIC}(L, L)}}, \qquad
        \text{HSIC}(K, L) \propto \operatorname{tr}(K H L H), \quad H = I - \tfrac1n 11^\top.

    For the linear kernel this is :math:`\lVert Y^\top X \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y
    \rVert_F)` with centred columns. Lower is more diverse. In [0, 1]; 1 for features that differ by a rotation, a
    shift and one factor. NaN if either does not vary over samples. Features with more columns than samples look alike
    whatever they are: independent ones of 20 and 300 columns on 400 samples have about 0.14. ``unbiased=True`` has
    0 there on average, can be slightly negative, and is not clipped.

    Args:
        x: Features of one network.
        y: Features of another on the same samples, in the same order; of any width.
        kernel: The inner product, or ``"rbf"``, :math:`\exp(-\lVert x_a - x_b \rVert^2 / 2 \sigma^2)`.
        bandwidth: For ``"rbf"``, :math:`\sigma` as a part of the median distance between two samples, for each
            network its own. NaN is returned if the median distance is zero.
        unbiased: Use the unbiased estimate of HSIC, which needs four samples: with :math:`\tilde K, \tilde L` the
            matrices without their diagonals, :math:`[\operatorname{tr}(\tilde K \tilde L) + \frac{1^\top \tilde K 1\,
            1^\top \tilde L 1}{(n-1)(n-2)} - \frac{2}{n-2} 1^\top \tilde K \tilde L 1] / n(n-3)`.

    Returns:
        A number, computed in float64.

    Raises:
        InputError: When the numbers of samples differ; with fewer than two samples, or four if unbiased; for a
            bandwidth that is not positive.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
        >>> round(float(cka(x, 5 * x.flip(1) - 1)), 6)
        1.0
        >>> round(float(cka(x, x[:, :1])), 4)
        0.9339

    References:
        Kornblith et al. (2019), Similarity of neural network representations revisited, section 3; Song et al. (2012)
        and Nguyen et al. (2021), equation 3, for the unbiased estimate.
    """
    return cka_matrix([x, y], kernel=kernel, bandwidth=bandwidth, unbiased=unbiased)[0, 1]


def ckac(
    features: Features,
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 0.5,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    r"""Diversity in features: how differently members see the samples, the mean over pairs of

    .. math:: \text{CKAC} = 1 - \text{CKA}.

    Higher is more diverse. In [0, 1], a little above 1 if unbiased; 0 for features that differ by a rotation, a shift
    and one factor. A pair that is NaN in `cka` makes it NaN.

    Args:
        features: Of each member, or a sequence of features with one width each.
        kernel: As in `cka`.
        bandwidth: As in `cka`.
        unbiased: As in `cka`.

    Raises:
        InputError: With fewer than two members; and as in `cka`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
        >>> round(float(ckac([x, x, x[:, :1]])), 4)
        0.044

    References:
        Ramé et al. (2022), Diverse weight averaging: CKAC, the diversity in features.
    """
    return 1 - mean_over_pairs(cka_matrix(features, kernel=kernel, bandwidth=bandwidth, unbiased=unbiased))


def cka_matrix(
    features: Features,
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 0.5,
    unbiased: bool = False,
) -> Float[Tensor, "members members"]:
    """The `cka` of each pair of members, symmetric; 1 on the diagonal, NaN for features that do not vary.

    Computed from products of features or from Gram matrices, whichever costs less, in blocks: beside the features,
    memory does not grow with the number of samples (for ``"rbf"``: with its square, for the median distance).

    Args:
        features: Of each member, or a sequence of features with one width each.
        kernel: As in `cka`.
        bandwidth: As in `cka`.
        unbiased: As in `cka`.

    Raises:
        InputError: With fewer than two members; and as in `cka`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
        >>> cka_matrix([x, x[:, :1], torch.ones(4, 3)])
        tensor([[1.0000, 0.9339,    nan],
                [0.9339, 1.0000,    nan],
                [   nan,    nan,    nan]], dtype=torch.float64)
    """
    members = _members(features, kernel, bandwidth, unbiased)
    return _ratio(*_products(members, kernel, bandwidth, unbiased))


class MinibatchCKA:
    r"""CKA of features that never lie in memory together: batch by batch.

    .. math:: \text{CKA} = \frac{\sum_b \text{HSIC}_1(K_b, L_b)}
        {\sqrt{\sum_b \text{HSIC}_1(K_b, K_b) \sum_b \text{HSIC}_1(L_b, L_b)}},

    with the unbiased estimate of HSIC, :math:`\text{HSIC}_1`. Averaging the biased CKA of batches would be too high,
    the more so the smaller they are. Each batch counts the same, so use batches of one size. Samples of one batch are
    compared with each other only: shuffle them first.

    Args:
        kernel: As in `cka`.
        bandwidth: As in `cka`, of the median distance within each batch.

    Attributes:
        batches: How many there were so far.

    Raises:
        InputError: For a bandwidth that is not positive.

    Example:
        >>> x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x + torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
        >>> minibatch = MinibatchCKA()
        >>> for batch in range(0, 400, 40):
        ...     minibatch.update([x[batch : batch + 40], y[batch : batch + 40]])
        >>> print(f"{minibatch.value():.2f} {cka(x, y, unbiased=True):.2f}")
        0.48 0.49

    References:
        Nguyen et al. (2021), Do wide and deep networks learn the same things?, equations 2 and 3.
    """

    def __init__(self, *, kernel: Kernel = "linear", bandwidth: float = 0.5) -> None:
        _check_kernel(kernel, bandwidth)
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth
        self.batches = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def update(self, features: Features) -> None:
        """Add one batch: the features of each member for the same samples.

        Args:
            features: As in `cka_matrix`, of four samples at least.

        Raises:
            InputError: With fewer than two members or four samples; when the number of members is not that of the
                batches before.
        """
        members = _members(features, self.kernel, self.bandwidth, True)
        batch = _products(members, self.kernel, self.bandwidth, True)
        if self._sums is None:
            self._sums = batch
        elif len(batch[0]) != len(self._sums[0]):
            raise InputError(
                f"expected features of {len(self._sums[0])} members, as in the batches before, got {len(batch[0])}."
            )
        else:
            self._sums = self._sums[0] + batch[0], self._sums[1] + batch[1]
        self.batches += 1

    def matrix(self) -> Float[Tensor, "members members"]:
        """The CKA of each pair of members over all batches so far, as `cka_matrix`.

        Raises:
            InputError: Before the first batch.
        """
        if self._sums is None:
            raise InputError("there is no batch yet: call update(features) first.")
        return _ratio(*self._sums)

    def value(self) -> Float[Tensor, ""]:
        """The mean over pairs of `matrix`; for two members, their CKA.

        Raises:
            InputError: Before the first batch.
        """
        return mean_over_pairs(self.matrix())


class _Member:
    """Features of one member, widened and centred as they are read."""

    def __init__(self, features: Tensor) -> None:
        self.features = features.detach()
        # Float32 where the device has nothing better.
        self.dtype = torch.float32 if features.device.type == "mps" else torch.float64
        # From the first sample on: features that do not vary become exactly zero.
        self.origin = self.features[0].to(self.dtype)
        self.mean = torch.zeros_like(self.origin)
        parts = list(_parts(len(features), _ROWS))
        self.mean = sum((self.rows(part).sum(0) for part in parts), self.mean) / len(features)
        self.squares = torch.cat([self.rows(part).square().sum(1) for part in parts])  # (samples,)

    def rows(self, part: slice) -> Tensor:
        return self.features[part].to(self.dtype) - self.origin - self.mean

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Squared distances between samples."""
        inner = self.rows(rows) @ self.rows(columns).T
        squared = (self.squares[rows, None] + self.squares[columns] - 2 * inner).clamp_(min=0)
        return squared.fill_diagonal_(0) if rows.start == columns.start else squared


def _parts(samples: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, samples)) for start in range(0, samples, size))


def _check_kernel(kernel: str, bandwidth: float) -> None:
    if kernel not in ("linear", "rbf"):
        raise InputError(f"kernel must be 'linear' or 'rbf', got {kernel!r}.")
    if not 0 < bandwidth < float("inf"):
        raise InputError(f"bandwidth must be a positive part of the median distance, got {bandwidth}.")


def _members(features: Features, kernel: str, bandwidth: float, unbiased: bool) -> list[_Member]:
    _check_kernel(kernel, bandwidth)
    if len(features) < 2:
        raise InputError(f"CKA compares two members or more, got {len(features)}.")
    for i, x in enumerate(features):
        if x.ndim != 2 or not x.is_floating_point():
            raise InputError(
                f"expected float features of shape (samples, features), got {x.dtype} of shape {tuple(x.shape)} in "
                f"member {i}. Flatten or pool what has more axes, as `x.flatten(1)`."
            )
        if len(x) != len(features[0]):
            raise InputError(
                f"expected features of the same samples, got {len(features[0])} samples in member 0 and {len(x)} in "
                f"member {i}."
            )
    least = 4 if unbiased else 2
    if len(features[0]) < least:
        what = "The unbiased estimate" if unbiased else "CKA"
        raise InputError(f"{what} needs at least {least} samples, in each batch, got {len(features[0])}.")
    return [_Member(x) for x in features]


def _products(members: list[_Member], kernel: str, bandwidth: float, unbiased: bool) -> tuple[Tensor, Tensor]:
    """HSIC of all pairs, and the size of what each variance was computed from.

    Scaled as the unbiased estimate is, or in any way, which CKA does not see.
    """
    samples, count = len(members[0].features), len(members)
    width = sum(member.features.shape[1] for member in members)
    # Products of floats: samples x width^2 for features; samples^2 x width, and samples^2 for each pair, for Grams.
    by_features = samples * (width + count**2) >= width**2
    if kernel == "linear" and by_features:
        products, sizes = _from_features(members, unbiased)
    else:
        products, sizes = _from_grams(members, bandwidth if kernel == "rbf" else None, unbiased)
    # One triangle for both, as BLAS need not round them alike.
    products = products.triu() + products.triu(1).T
    scale = samples * (samples - 3) if unbiased else 1
    return products / scale, sizes / scale


def _from_features(members: list[_Member], unbiased: bool) -> tuple[Tensor, Tensor]:
    """The squared norms of all ``X^T Y``."""
    samples, count = len(members[0].features), len(members)
    products = members[0].squares.new_zeros(count, count)
    for i, a in enumerate(members):
        for j, b in enumerate(members[i:], start=i):
            cross = sum(
                a.rows(part).T @ b.rows(part) for part in _parts(samples, _ROWS)
            )  # (features, others)
            products[i, j] = torch.as_tensor(cross).square().sum()
    sizes = products.diagonal().clone()
    if unbiased:
        # The estimate without its diagonals, where centred columns leave of all row sums the diagonal.
        squares = torch.stack([member.squares for member in members])  # (members, samples)
        total = squares.sum(1)
        products += total[:, None] * total / ((samples - 1) * (samples - 2))
        products -= squares @ squares.T * (samples / (samples - 2))
    return products, sizes


def _from_grams(members: list[_Member], bandwidth: float | None, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Inner products of all Gram matrices, tile by tile, each centred; without a bandwidth they are linear."""
    samples, count = len(members[0].features), len(members)
    side = max(1, int((_TILE / count) ** 0.5))
    parts = list(_parts(samples, side))
    scales = [None if bandwidth is None else _scale(member, bandwidth, side) for member in members]
    sums = [_row_sums(m, s, parts, unbiased) for m, s in zip(members, scales, strict=True)]
    products = members[0].squares.new_zeros(count, count)
    sizes = members[0].squares.new_zeros(count)
    for k, rows in enumerate(parts):
        for columns in parts[k:]:
            twice = 1 if rows == columns else 2  # the tile on the other side of the diagonal
            stack = products.new_empty(count, rows.stop - rows.start, columns.stop - columns.start)
            for i, (member, scale, row_sums) in enumerate(zip(members, scales, sums, strict=True)):
                tile = _gram(member, scale, rows, columns)
                sizes[i] += twice * tile.square().sum()
                # Unbiased, a matrix without its diagonal: its rows have samples - 1 entries, and one more is lost.
                lost = samples - 2 if unbiased else samples
                tile -= row_sums[rows, None] / lost
                tile -= row_sums[columns] / lost
                tile += row_sums.sum() / (lost * (samples - 1 if unbiased else samples))
                if unbiased and rows == columns:
                    tile.fill_diagonal_(0)
                stack[i] = tile
            entries = stack.flatten(1)
            products += twice * (entries @ entries.T)
    return products, sizes


def _gram(member: _Member, scale: Tensor | None, rows: slice, columns: slice) -> Tensor:
    if scale is None:
        return member.rows(rows) @ member.rows(columns).T
    # One less than the kernel, which centring does not see, so that wide kernels keep their digits.
    return torch.expm1(member.distances(rows, columns) / -scale)


def _row_sums(member: _Member, scale: Tensor | None, parts: list[slice], unbiased: bool) -> Tensor:
    """Sums of the rows of a Gram matrix, without its diagonal if unbiased."""
    if scale is None:  # the columns are centred
        return -member.squares if unbiased else torch.zeros_like(member.squares)
    sums = torch.zeros_like(member.squares)
    for k, rows in enumerate(parts):
        for columns in parts[k:]:
            tile = _gram(member, scale, rows, columns)
            sums[rows] += tile.sum(1)
            if rows != columns:
                sums[columns] += tile.sum(0)
    return sums


def _scale(member: _Member, bandwidth: float, side: int) -> Tensor:
    """Twice the squared bandwidth; NaN where the median distance is zero."""
    samples = len(member.features)
    strips = (member.distances(rows, slice(rows.start, samples)) for rows in _parts(samples, side))
    distances = torch.cat([strip[torch.ones_like(strip, dtype=torch.bool).triu(1)] for strip in strips])
    count = len(distances)
    low, high = (distances.kthvalue(k).values.sqrt() for k in ((count + 1) // 2, count // 2 + 1))
    median = (low + high) / 2
    # Duplicates are as near as rounding lets them be.
    median = torch.where(median.square() <= _ZERO * member.squares.mean(), torch.nan, median)
    return 2 * (bandwidth * median).square()


def _ratio(products: Tensor, sizes: Tensor) -> Tensor:
    own = products.diagonal()
    own = torch.where(own <= _ZERO * sizes, torch.nan, own)
    root = own.sqrt()
    matrix = products / (root[:, None] * root)
    matrix.diagonal().copy_(own / own)
    return matrix
