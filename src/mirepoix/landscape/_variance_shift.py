r"""Variance and diversity shift: how uncertain a wide network is on a target, from the inputs alone.

A wide network is a Gaussian process, and the variance of its predictions depends on how similar target inputs are to
source inputs, in terms of its kernel. Where source inputs are alike in norm and unlike each other, the mean variance
on the target is a distance between the two sets of inputs, the maximum mean discrepancy, up to constants of the
target.

Kernel matrices are in float64: ``k_ss`` of the source with itself, ``k_st`` of source (rows) and target, ``k_tt`` of
the target with itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirepoix.landscape._per_sample import finite
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

__all__ = [
    "VarianceByMMD",
    "constant_diagonal",
    "cosine_kernel",
    "empirical_ntk",
    "gaussian_process_variance",
    "mmd",
    "rbf_kernel",
    "variance_by_mmd",
]

# How many numbers the Jacobians of a block of images may hold: 512 MiB in float32.
BLOCK = 2**27


@dataclass(frozen=True)
class VarianceByMMD:
    r"""The mean variance on the target as the proposition has it, term by term, and whether it applies.

    Attributes:
        value: ``mmd_term + lambda_t - beta_term``. Below 0 where the assumptions fail: it is not clipped.
        mmd_squared: :math:`MMD^2` of the squared kernel, the only part that relates source and target.
        mmd_term: :math:`n_S / (2 \lambda_S) \cdot MMD^2`.
        lambda_t: :math:`\lambda_T`, the mean of :math:`K(x, x)` on the target.
        beta_t: :math:`\beta_T`, the mean of :math:`K^2` between different target inputs.
        beta_term: :math:`n_S / (2 \lambda_S) \cdot \beta_T`.
        first_order: :math:`\lambda_T - (n_S / \lambda_S)\, \mathrm{mean}_{S,T} K^2`, without what :math:`\epsilon`
            adds to the discrepancy; equal to ``value`` for orthogonal source inputs.
        lambda_s: :math:`\lambda_S`, the mean of :math:`K(x, x)` on the source.
        spread: The largest difference of :math:`K(x, x)` on the source from it, over it; assumed to be 0.
        epsilon: The largest :math:`|K(x, x')|` between different source inputs.
        crowding: The largest sum of :math:`|K(x, x')|` over all other source inputs, over :math:`\lambda_S`.
        n_source: How many source inputs there are.
        n_target: How many target inputs there are.
    """

    value: float
    mmd_squared: float
    mmd_term: float
    lambda_t: float
    beta_t: float
    beta_term: float
    first_order: float
    lambda_s: float
    spread: float
    epsilon: float
    crowding: float
    n_source: int
    n_target: int

    @property
    def epsilon_ratio(self) -> float:
        r""":math:`\epsilon / \lambda_S`, assumed to be much smaller than 1; what is left out grows with it."""
        return self.epsilon / self.lambda_s

    @property
    def applies(self) -> bool:
        r"""Whether the assumptions hold well enough to read the value.

        That is for an equal diagonal (to 1 %) and a crowding below 1: then the diagonal dominates the kernel matrix of
        the source, and its inverse is the series that the proof cuts off.
        """
        return self.spread <= 0.01 and self.crowding < 1

    def verdict(self) -> str:
        """A sentence with the value, the assumptions and how far they hold."""
        ratio = f"epsilon / lambda_S = {self.epsilon_ratio:.3g}, crowding {self.crowding:.3g}"
        spread = f"the diagonal of the source differs by {100 * self.spread:.3g} %"
        if self.applies:
            return f"Mean variance on the target {self.value:.4g}: {ratio}, {spread}."
        return (
            f"Mean variance on the target {self.value:.4g} by a formula whose assumptions fail here: {ratio}, "
            f"{spread}. Read the discrepancy only, or the exact variance of gaussian_process_variance."
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is not finite becomes ``None``."""
        values = {
            name: value if isinstance(value, int) else finite(value)
            for name in self.__dataclass_fields__
            for value in [getattr(self, name)]
        }
        return {**values, "epsilon_ratio": finite(self.epsilon_ratio), "applies": self.applies}


def rbf_kernel(
    a: Float[Tensor, "first ..."], b: Float[Tensor, "second ..."] | None = None, *, bandwidth: float
) -> Float[Tensor, "first second"]:
    r"""The Gaussian kernel of inputs or features, :math:`\exp(-\lVert x - x' \rVert^2 / h)`.

    In (0, 1], and 1 for equal inputs. Its square is the same kernel with half the bandwidth.

    Args:
        a: Inputs, of any shape after the first axis.
        b: Others, of the same shape; ``a`` itself if left out.
        bandwidth: :math:`h`, in the unit of a squared distance.

    Raises:
        InputError: For a bandwidth that is not a number above 0; for inputs of different shapes or not finite.

    Example:
        >>> import torch
        >>> rbf_kernel(torch.tensor([[0.0], [1.0]]), bandwidth=0.5)
        tensor([[1.0000, 0.1353],
                [0.1353, 1.0000]], dtype=torch.float64)
    """
    if not 0 < bandwidth < math.inf:
        raise InputError(f"bandwidth: expected a number above 0, got {bandwidth!r}.")
    x, y = _rows(a, b)
    centre = x.mean(0)  # distances are differences of squares, which are small around the centre
    x, y = x - centre, y - centre
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    if b is None:
        squares = (squares + squares.T) / 2
        squares.fill_diagonal_(0.0)
    kernel: Tensor = (-squares.clamp_min(0.0) / bandwidth).exp()
    return kernel


def cosine_kernel(
    a: Float[Tensor, "first ..."], b: Float[Tensor, "second ..."] | None = None, *, scale: float = 1.0
) -> Float[Tensor, "first second"]:
    r"""The cosine of the angle between inputs or features, times a scale.

    .. math:: \lambda_S \frac{\langle \phi, \phi' \rangle}{\lVert \phi \rVert \lVert \phi' \rVert} .

    In [-scale, scale]: the linear kernel of features on a sphere, so that its diagonal is constant.

    Args:
        a: Features, of any shape after the first axis.
        b: Others, of the same shape; ``a`` itself if left out.
        scale: :math:`\lambda_S`.

    Raises:
        InputError: For features that are zero, as zero has no direction; for features of different shapes or not
            finite.

    Example:
        >>> import torch
        >>> cosine_kernel(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]]))
        tensor([[0., 1.]], dtype=torch.float64)
    """
    x, y = _rows(a, b)
    unit = []
    for side, rows in (("first", x), ("second", y)):
        norms = rows.norm(dim=1, keepdim=True)
        if not (norms > 0).all():
            place = int((norms[:, 0] == 0).nonzero()[0])
            raise InputError(
                f"cosine_kernel: features {place} of the {side} are all zero and have no direction."
            )
        unit.append(rows / norms)
    kernel: Tensor = scale * unit[0] @ unit[1].T
    return kernel.fill_diagonal_(scale) if b is None else kernel


def empirical_ntk(
    model: nn.Module,
    theta: Weights,
    a: Float[Tensor, "first ..."],
    b: Float[Tensor, "second ..."] | None = None,
    *,
    names: Collection[str] | None = None,
    block: int | None = None,
) -> Float[Tensor, "first second"]:
    r"""The neural tangent kernel of a network at given weights: how alike its gradients are on two inputs.

    .. math:: K(x, x') = \frac1C \sum_{c=1}^{C} \langle \nabla_\theta f_c(x), \nabla_\theta f_c(x') \rangle,

    over the :math:`C` logits. The network is in evaluation mode for the while, and back, so that no image has an
    effect on another. Products are in the dtype of the weights, sums over parameters in it too; pass float64 weights
    and inputs where small values matter.

    Args:
        model: Returns `mirepoix.types.Outputs` or logits ``(samples, classes)``.
        theta: Its weights, the torch tensors of a state dict. They are not changed, nor are those of the model.
        a: Images, on the device of the weights.
        b: Others; ``a`` itself if left out.
        names: The parameters to take gradients for, such as those of the classifier; all parameters if left out.
        block: How many images have their gradients in memory at once, twice; each takes as many numbers as there are
            classes times parameters. As many as fit 512 MiB of float32 if left out. The gradients of ``b`` are taken
            again for each block of ``a``.

    Raises:
        InputError: For names that are no parameters of the model; for weights that do not fit it; for a block below
            1.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> empirical_ntk(model, model.state_dict(), torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]], dtype=torch.float64)

    References:
        Jacot, Gabriel and Hongler (2018), Neural tangent kernel; thesis, assumption 2.1.
    """
    import torch
    from torch.func import functional_call, jacrev, vmap

    parameters = dict(model.named_parameters())
    wanted = list(parameters) if names is None else list(names)
    unknown = [name for name in wanted if name not in parameters]
    if unknown or not wanted:
        some = ", ".join(list(parameters)[:5])
        raise InputError(f"names: expected parameters of the model, such as {some}, got {unknown or 'none'}.")
    missing = sorted(set(model.state_dict()) ^ set(theta))
    if missing:
        raise InputError(
            f"theta: expected the names of the model's state dict; {missing[0]!r} is in one of the two only."
        )
    if len(a) == 0 or (b is not None and len(b) == 0):
        raise InputError("empirical_ntk: expected at least one image on each side, got none.")
    if block is not None and block < 1:
        raise InputError(f"block: expected at least 1 image, got {block}.")
    rest = {name: value.detach() for name, value in theta.items()}
    moving = {name: rest.pop(name) for name in wanted}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in parameters:
            rest.pop(name, None)  # tied to another, which it follows

    def logits(some: dict[str, Tensor], image: Tensor) -> Tensor:
        out = functional_call(model, {**rest, **some}, (image[None],))
        of_image: Tensor = (out.logits if hasattr(out, "logits") else out)[0]
        return of_image

    jacobian = vmap(jacrev(logits), in_dims=(None, 0))

    def gradients(images: Tensor) -> Tensor:
        found = jacobian(moving, images)
        return torch.cat([found[name].flatten(2) for name in wanted], dim=2).flatten(1)

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            classes = len(logits(moving, a[0]))
        size = classes * sum(value.numel() for value in moving.values())
        step = block if block is not None else max(1, BLOCK // size)
        others = a if b is None else b
        kernel = torch.empty(len(a), len(others), dtype=torch.float64)
        for i in range(0, len(a), step):
            first = gradients(a[i : i + step])
            for j in range(i if b is None else 0, len(others), step):
                second = first if b is None and i == j else gradients(others[j : j + step])
                products = (first @ second.T / classes).double().cpu()
                if second is first:
                    products = (products + products.T) / 2  # two roundings of one number
                kernel[i : i + step, j : j + step] = products
                if b is None:
                    kernel[j : j + step, i : i + step] = products.T
    finally:
        for module, training in modes.items():
            module.training = training
    return kernel


def constant_diagonal(
    k_ss: Float[Tensor, "source source"],
    k_st: Float[Tensor, "source target"],
    k_tt: Float[Tensor, "target target"],
    *,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "source source"], Float[Tensor, "source target"], Float[Tensor, "target target"]]:
    r"""The kernel with one value on its diagonal, :math:`\lambda_S K(x, x') / \sqrt{K(x, x) K(x', x')}`.

    Args:
        k_ss: Of the source with itself.
        k_st: Of source and target.
        k_tt: Of the target with itself.
        scale: :math:`\lambda_S`, the value on the diagonal.

    Raises:
        InputError: For shapes that do not fit; for a diagonal that is not above 0.

    Example:
        >>> import torch
        >>> k_ss, k_st, k_tt = torch.tensor([[4.0]]), torch.tensor([[2.0]]), torch.tensor([[9.0]])
        >>> constant_diagonal(k_ss, k_st, k_tt)[1]
        tensor([[0.3333]], dtype=torch.float64)

    References:
        Thesis, appendix C.1.1.2.
    """
    k_ss, k_st, k_tt = _kernels("constant_diagonal", k_ss, k_st, k_tt)
    roots = []
    for name, kernel in (("k_ss", k_ss), ("k_tt", k_tt)):
        diagonal = kernel.diagonal()
        if not (diagonal > 0).all():
            place = int((~(diagonal > 0)).nonzero()[0])
            raise InputError(
                f"constant_diagonal: the diagonal of {name} must be above 0, got {float(diagonal[place]):.4g} at "
                f"{place}."
            )
        roots.append(diagonal.sqrt())
    source, target = roots
    found = (
        scale * k_ss / source.outer(source),
        scale * k_st / source.outer(target),
        scale * k_tt / target.outer(target),
    )
    found[0].fill_diagonal_(scale)
    found[2].fill_diagonal_(scale)
    return found


def mmd(
    k_ss: Float[Tensor, "source source"],
    k_st: Float[Tensor, "source target"],
    k_tt: Float[Tensor, "target target"],
) -> Float[Tensor, ""]:
    r"""The squared maximum mean discrepancy between two sets of inputs, without bias.

    .. math:: MMD^2 = \operatorname*{mean}_{x_S \ne x_S'} k(x_S, x_S')
              + \operatorname*{mean}_{x_T \ne x_T'} k(x_T, x_T') - 2 \operatorname*{mean}_{x_S, x_T} k(x_S, x_T) .

    Higher is farther apart. For two sets from one distribution it is 0 on average, so that it is negative half of
    the time: it is not clipped, and no root is taken.

    Args:
        k_ss: Of the source with itself.
        k_st: Of source and target.
        k_tt: Of the target with itself.

    Raises:
        InputError: With fewer than two inputs on a side; for shapes that do not fit; for values that are not finite.

    Example:
        >>> import torch
        >>> mmd(torch.eye(3), torch.zeros(3, 2), torch.ones(2, 2))
        tensor(1., dtype=torch.float64)

    References:
        Gretton et al. (2012), A kernel two-sample test.
    """
    k_ss, k_st, k_tt = _kernels("mmd", k_ss, k_st, k_tt, least=2)
    return _off_diagonal_mean(k_ss) + _off_diagonal_mean(k_tt) - 2 * k_st.mean()


def variance_by_mmd(
    k_ss: Float[Tensor, "source source"],
    k_st: Float[Tensor, "source target"],
    k_tt: Float[Tensor, "target target"],
) -> VarianceByMMD:
    r"""The mean variance of predictions on a target, by the discrepancy between source and target inputs.

    .. math:: \mathbb{E}_T [ var(x_T) ] = \frac{n_S}{2 \lambda_S} MMD^2(X_S, X_T) + \lambda_T
              - \frac{n_S}{2 \lambda_S} \beta_T + \mathcal{O}(\epsilon),

    for a network that is a Gaussian process with kernel :math:`K`, for :math:`K(x, x) = \lambda_S` on the source and
    :math:`|K(x, x')| \le \epsilon \ll \lambda_S` between different source inputs. The discrepancy is that of
    :math:`K^2`. It grows with the distance between source and target; the other terms are constants of the target.
    Compare it with the variance that `mirepoix.landscape.bias_variance` measures over runs.

    Args:
        k_ss: Of the source with itself, of the kernel and not of its square.
        k_st: Of source and target.
        k_tt: Of the target with itself.

    Returns:
        Every term, with what the assumptions are off by: read ``verdict()``.

    Raises:
        InputError: As `mmd`; for a diagonal of the source whose mean is not above 0.

    Example:
        >>> import torch
        >>> far = variance_by_mmd(torch.eye(3), torch.zeros(3, 2), torch.eye(2))
        >>> near = variance_by_mmd(torch.eye(3), torch.eye(3)[:, :2], torch.eye(2))
        >>> far.value, near.value  # all of the prior variance, and none of it on the source inputs themselves
        (1.0, 0.0)

    References:
        Thesis, proposition 2.1, equation (2.3), and appendix C.1.1.3.
    """
    k_ss, k_st, k_tt = _kernels("variance_by_mmd", k_ss, k_st, k_tt, least=2)
    n_source, n_target = k_st.shape
    diagonal = k_ss.diagonal()
    lambda_s = float(diagonal.mean())
    if not lambda_s > 0:
        raise InputError(
            f"variance_by_mmd: the diagonal of k_ss must have a mean above 0, got {lambda_s:.4g}."
        )
    squared = float(mmd(k_ss.square(), k_st.square(), k_tt.square()))
    factor = n_source / (2 * lambda_s)
    lambda_t, beta_t = float(k_tt.diagonal().mean()), float(_off_diagonal_mean(k_tt.square()))
    others = k_ss.clone().fill_diagonal_(0.0)
    return VarianceByMMD(
        value=factor * squared + lambda_t - factor * beta_t,
        mmd_squared=squared,
        mmd_term=factor * squared,
        lambda_t=lambda_t,
        beta_t=beta_t,
        beta_term=factor * beta_t,
        first_order=lambda_t - 2 * factor * float(k_st.square().mean()),
        lambda_s=lambda_s,
        spread=float((diagonal - lambda_s).abs().max()) / lambda_s,
        epsilon=float(others.abs().max()),
        crowding=float(others.abs().sum(1).max()) / lambda_s,
        n_source=n_source,
        n_target=n_target,
    )


def gaussian_process_variance(
    k_ss: Float[Tensor, "source source"],
    k_st: Float[Tensor, "source target"],
    k_tt: Float[Tensor, "target target"],
    *,
    noise: float = 0.0,
) -> Float[Tensor, " target"]:
    r"""The variance of a Gaussian process on each target input, once it is told its values on the source.

    .. math:: var(x) = K(x, x) - K(x, X_S) \big( K(X_S, X_S) + \sigma^2 I \big)^{-1} K(X_S, x) .

    At least 0 up to rounding, and at most :math:`K(x, x)`; 0 on the source itself without noise. It does not depend
    on labels.

    Args:
        k_ss: Of the source with itself.
        k_st: Of source and target.
        k_tt: Of the target with itself; only its diagonal is used.
        noise: :math:`\sigma^2`, the variance of the noise of the labels.

    Raises:
        InputError: For shapes that do not fit, or values that are not finite; for negative noise; where ``k_ss`` has
            no inverse, as with an input that is there twice.

    Example:
        >>> import torch
        >>> gaussian_process_variance(2 * torch.eye(2), torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]]))
        tensor([1.5000], dtype=torch.float64)

    References:
        Rasmussen and Williams (2006), equation 2.26; thesis, lemma C.1.
    """
    import torch

    k_ss, k_st, k_tt = _kernels("gaussian_process_variance", k_ss, k_st, k_tt)
    if not 0 <= noise < math.inf:
        raise InputError(f"noise: expected a variance, at least 0, got {noise!r}.")
    factor, failed = torch.linalg.cholesky_ex(k_ss + noise * torch.eye(len(k_ss), dtype=k_ss.dtype))
    if int(failed) > 0:
        raise InputError(
            f"gaussian_process_variance: k_ss is not positive definite from its row {int(failed) - 1} on, as where an "
            "input is there twice. Leave such inputs out, or pass noise above 0."
        )
    known = torch.linalg.solve_triangular(factor, k_st, upper=False)  # (source, target)
    variance: Tensor = k_tt.diagonal() - known.square().sum(0)
    return variance


def _rows(a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both sides in float64 on the CPU, one row per input."""
    if b is not None and a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"expected inputs of one shape, got {tuple(a.shape[1:])} and {tuple(b.shape[1:])} after the first axis."
        )
    sides = []
    for x in (a,) if b is None else (a, b):
        rows = x.detach().cpu().double().flatten(1)
        if len(rows) == 0:
            raise InputError("expected at least one input on each side, got none.")
        if not rows.isfinite().all():
            raise InputError("inputs must be finite, some are NaN or infinite.")
        sides.append(rows)
    return sides[0], sides[-1]


def _kernels(
    caller: str, k_ss: Tensor, k_st: Tensor, k_tt: Tensor, *, least: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """All three in float64 on the CPU, once they fit each other."""
    shapes = [tuple(kernel.shape) for kernel in (k_ss, k_st, k_tt)]
    if len(shapes[1]) != 2 or shapes != [(shapes[1][0],) * 2, shapes[1], (shapes[1][1],) * 2]:
        raise InputError(
            f"{caller}: expected kernels of source and source, source and target, target and target, got shapes "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    if min(shapes[1]) < least:
        raise InputError(
            f"{caller}: expected at least {least} inputs of source and of target, got {shapes[1][0]} and "
            f"{shapes[1][1]}."
        )
    found = [kernel.detach().cpu().double() for kernel in (k_ss, k_st, k_tt)]
    for name, kernel in zip(("k_ss", "k_st", "k_tt"), found, strict=True):
        if not kernel.isfinite().all():
            raise InputError(f"{caller}: kernels must be finite, {name} is not.")
    return found[0], found[1], found[2]


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    count = len(kernel)
    mean: Tensor = kernel.clone().fill_diagonal_(0.0).sum() / (count * (count - 1))
    return mean
