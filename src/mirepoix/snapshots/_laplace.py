"""A Gaussian around one solution, from the curvature of the loss there: Laplace's approximation."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mirepoix.data import Split, evaluation_batches
from mirepoix.seeds import seed_hash
from mirepoix.types import Batch, InputError, Weights

__all__ = ["laplace_samples"]

Structure = Literal["kron", "diag", "full"]
Layers = Literal["all", "last"]
Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def laplace_samples(
    network: nn.Module,
    theta: Weights,
    data: Split | Iterable[Batch],
    *,
    count: int,
    seed: int,
    scale: float = 1.0,
    prior_precision: float = 1.0,
    structure: Structure = "kron",
    layers: Layers = "all",
) -> list[dict[str, Tensor]]:
    r"""Members drawn from Laplace's approximation of the posterior at one solution (Ritter et al., 2018).

    .. math:: \theta_m \sim \mathcal{N}\big(\theta, \; s \, (H + \tau I)^{-1}\big), \qquad
        H \approx \sum_{i = 1}^{N} \nabla^2 \big( -\log p_\theta(y_i \mid x_i) \big)

    with :math:`H` the generalised Gauss-Newton matrix of the whole data, a sum and not a mean, as a Kronecker product
    per layer (KFAC). The curvature, its inverse and the draws are those of ``laplace-torch`` (Daxberger et al., 2021),
    which is needed for it: ``pip install 'mirepoix[laplace]'``.

    Sampled are weights and biases of linear layers and convolutions, or of the classifier alone. All others, scale and
    shift of normalisation layers among them, stay what they are in :math:`\theta`, as they have no Kronecker factors.
    The network is used as in evaluation. Running statistics of batch norm stay too, and **do not fit the samples**:
    measure them again for each, with `mirepoix.merging.reestimate_batch_norm`.

    The spread is to be tuned on validation accuracy, or samples of a large network are no members: by :math:`s`, times
    the covariance, or by :math:`\tau`, which for a training with weight decay :math:`\gamma` would be :math:`N \gamma`.

    Args:
        network: The network; its device and architecture are used, not its weights.
        theta: The solution, weights of this network.
        data: Training images, without augmentation: batches, which are kept in memory, or a split, whose source
            domains are read anew in every pass.
        count: How many members.
        seed: Of the draws.
        scale: :math:`s`, as for `SWAG`; 0 for copies of the solution.
        prior_precision: :math:`\tau`, positive.
        structure: Of :math:`H`: Kronecker factors per layer, its diagonal, or all of it, which is for small networks.
        layers: ``"all"`` linear and convolution layers; or the ``"last"``, the classifier, for which features are
            computed once.

    Returns:
        Weights on the CPU, in the dtypes of ``theta``.

    Raises:
        InputError: Without laplace-torch; for an option out of its range; without images; for weights of another
            network; for ``"last"``, if the network has no linear ``classifier``; if the library has no such curvature
            for a layer of the network.

    References:
        Ritter et al. (2018), A scalable Laplace approximation for neural networks; Daxberger et al. (2021), Laplace
        redux: effortless Bayesian deep learning.
    """
    _check(count, scale, prior_precision, structure, layers)
    laplace = _library()
    model = copy.deepcopy(network).requires_grad_(False).eval()
    _load(model, theta)
    pairs, samples = _pairs(data)
    if layers == "last":
        fitted, names = _classifier(model)
        pairs = _kept(model, pairs)
    else:
        fitted = _Logits(model)
        names = [
            f"{name}.{parameter}"
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | _ConvNd)
            for parameter, _ in module.named_parameters(recurse=False)
        ]
        for name in names:
            model.get_parameter(name).requires_grad_()
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    draws = _drawn(laplace, fitted, _Loader(pairs, samples), count, seed, prior_precision, structure)
    like = {name: _tensor(theta[name]).detach().cpu() for name in model.state_dict()}
    members = []
    for row in draws:
        member, first = {name: value.clone() for name, value in like.items()}, 0
        for name in names:
            value = like[name]
            deviation = row[first : first + value.numel()].view(value.shape)
            member[name] = (value.double() + math.sqrt(scale) * deviation).to(value.dtype)
            first += value.numel()
        members.append(member)
    return members


class _Logits(nn.Module):
    """The network, as the library wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).logits
        return logits


class _Loader:
    """Pairs of inputs and labels, as often as they are asked for; the library asks for the size of a data set."""

    def __init__(self, pairs: Pairs, samples: int) -> None:
        self.pairs, self.dataset = pairs, range(samples)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.pairs()


def _drawn(
    laplace: Any,
    fitted: nn.Module,
    loader: _Loader,
    count: int,
    seed: int,
    prior_precision: float,
    structure: Structure,
) -> Tensor:
    """Deviations from the solution, ``(count, weights)``, in the order of the parameters, in float64 on the CPU."""
    trained = [parameter for parameter in fitted.parameters() if parameter.requires_grad]
    device = trained[0].device
    try:
        posterior = laplace.Laplace(
            fitted,
            "classification",
            subset_of_weights="all",
            hessian_structure=structure,
            prior_precision=prior_precision,
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed_hash("laplace", seed))
            posterior.fit(loader)
            drawn: Tensor = posterior.sample(count)
    except NotImplementedError as error:
        raise InputError(
            f"laplace-torch has no {structure!r} curvature for a layer of this network ({error}); take another "
            "structure, or layers='last'."
        ) from error
    solution = nn.utils.parameters_to_vector(trained).detach()
    if drawn.shape != (count, len(solution)):
        raise InputError(
            f"laplace-torch returned samples of shape {tuple(drawn.shape)}, expected {(count, len(solution))}; "
            "install version 0.3 or later."
        )
    return (drawn.detach().cpu().double() - solution.cpu().double()).contiguous()


def _classifier(model: nn.Module) -> tuple[nn.Module, list[str]]:
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise InputError(
            f"layers='last' needs a network with a linear classifier, got {type(model).__name__} with "
            f"{type(classifier).__name__}."
        )
    return classifier.requires_grad_(), [f"classifier.{name}" for name, _ in classifier.named_parameters()]


def _kept(model: nn.Module, pairs: Pairs) -> Pairs:
    """Features in place of images, computed once."""
    device = next(model.parameters()).device
    with torch.no_grad():
        kept = [(model(images.to(device)).features, labels) for images, labels in pairs()]
    return lambda: iter(kept)


def _pairs(data: Split | Iterable[Batch]) -> tuple[Pairs, int]:
    """Images with labels, to be read several times, and how many there are."""
    if isinstance(data, Split):
        split = data

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            for subset in split.train:
                for batch in evaluation_batches(subset, split.task.transform):
                    yield batch.images, batch.labels

        pairs, samples = read, sum(len(subset) for subset in split.train)
    else:
        kept = [(batch.images, batch.labels) for batch in data]

        def again() -> Iterator[tuple[Tensor, Tensor]]:
            return iter(kept)

        pairs, samples = again, sum(len(labels) for _, labels in kept)
    if not samples:
        raise InputError("laplace_samples needs training images, got none.")
    return pairs, samples


def _load(model: nn.Module, theta: Weights) -> None:
    expected = model.state_dict()
    for name in (*expected, *theta):
        there = theta.get(name)
        if name not in expected or there is None or tuple(there.shape) != tuple(expected[name].shape):
            here, wanted = (
                "missing" if each is None else f"of shape {tuple(each.shape)}"
                for each in (there, expected.get(name))
            )
            raise InputError(
                f"theta is of another network: {name!r} is {here} there and {wanted} in the network."
            )
    model.load_state_dict({name: _tensor(theta[name]) for name in expected})


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def _check(count: int, scale: float, prior_precision: float, structure: str, layers: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"laplace_samples needs count to be a whole number from 1, got {count!r}.")
    if not 0 <= scale < math.inf:
        raise InputError(f"laplace_samples needs scale to be a finite number of 0 or more, got {scale!r}.")
    if not 0 < prior_precision < math.inf:
        raise InputError(
            f"laplace_samples needs prior_precision to be a positive, finite number, got {prior_precision!r}."
        )
    for name, value, options in (("structure", structure, Structure), ("layers", layers, Layers)):
        if value not in get_args(options):
            expected = ", ".join(map(repr, get_args(options)))
            raise InputError(f"laplace_samples needs {name} to be one of {expected}, got {value!r}.")


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what it is built on still uses torch.jit
            return import_module("laplace")
    except ImportError as error:
        raise InputError("laplace_samples needs laplace-torch: pip install 'mirepoix[laplace]'.") from error
