"""The mean loss of a network as a function of some of its weights: its value and its derivatives.

All measures of curvature read the same function, so they agree on what is held fixed: the images, batch-norm
statistics, no dropout and no augmentation. It works on a copy; the network and the weights that were given stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mirepoix.seeds import generator
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MeanLoss", "rademacher"]

ENTRIES = 2**25
"""Entries of the vectors that are multiplied together, at most; more would only cost memory."""


class MeanLoss:
    """Mean cross-entropy over fixed images, in evaluation mode, at given weights.

    Vectors over the weights are flat, in the order of `names`, and several of them are the rows of a matrix.

    Args:
        measure: Who asks, for messages.
        model: Returns logits, or an object with ``logits``.
        theta: All weights of the network.
        batches: The images; they are kept.
        names: The parameters it is a function of; all by default.

    Raises:
        InputError: For weights of another network, names that are no parameters, no images, labels that are no
            classes, or a loss that is not finite.
    """

    def __init__(
        self,
        measure: str,
        model: nn.Module,
        theta: Weights,
        batches: Iterable[Batch],
        names: Iterable[str] | None = None,
    ) -> None:
        self.measure = measure
        self.network = _at(measure, model, theta)
        every = dict(self.network.named_parameters())
        self.names = list(every) if names is None else list(dict.fromkeys(names))
        unknown = [name for name in self.names if name not in every]
        if unknown or not self.names:
            got = f"{unknown[0]!r}" if unknown else "none"
            raise InputError(
                f"{measure}: names: expected parameters of the network ({_some(list(every))}), got {got}."
            )
        self.parameters = [every[name] for name in self.names]
        self.network.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self.sizes)
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self.batches: list[tuple[Tensor, Tensor]] = [
            (
                batch.images.to(self.device, self.dtype if batch.images.is_floating_point() else None),
                batch.labels.to(self.device),
            )
            for batch in batches
            if len(batch.labels)
        ]
        self.samples = sum(len(labels) for _, labels in self.batches)
        if not self.samples:
            raise InputError(f"{measure}: batches: expected at least one image, got none.")
        self.value = self._value()

    def _value(self) -> float:
        import torch
        from torch.nn import functional as F

        total = 0.0
        with torch.no_grad():
            for images, labels in self.batches:
                logits = self.logits(images)
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= logits.shape[-1]:
                    raise InputError(
                        f"{self.measure}: expected labels from 0 to {logits.shape[-1] - 1}, the classes of the "
                        f"network, got {low if low < 0 else high}."
                    )
                total += F.cross_entropy(logits.double(), labels, reduction="sum").item()
        if not math.isfinite(total):
            raise InputError(
                f"{self.measure}: expected a finite loss at these weights, got {total / self.samples}. "
                "Did the training diverge?"
            )
        return total / self.samples

    def logits(self, images: Tensor) -> Tensor:
        """What the network says of images."""
        out = self.network(images)
        logits: Tensor = getattr(out, "logits", out)
        return logits

    def chunks(self, rows: int, most: int) -> Iterator[range]:
        """The numbers of ``rows`` vectors in groups of at most ``most`` that may be in memory together."""
        step = max(1, min(most, ENTRIES // self.size))
        for start in range(0, rows, step):
            yield range(start, min(start + step, rows))

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian times each row, by differentiating the gradient: one graph per batch for all rows.

        Twice backward, not forward over backward: that is no faster, and group norm has no forward derivative.
        """
        import torch
        from torch.nn import functional as F

        total = torch.zeros_like(vectors)
        for images, labels in self.batches:
            with _twice_differentiable(self.measure):
                loss = F.cross_entropy(self.logits(images), labels, reduction="sum") / self.samples
                gradient = torch.autograd.grad(
                    loss, self.parameters, create_graph=True, materialize_grads=True
                )
                # What the loss does not depend on has the gradient zero, which leads nowhere.
                alive = [number for number, g in enumerate(gradient) if g.requires_grad]
                for row, vector in zip(total, vectors, strict=True):
                    pieces = self._pieces(vector)
                    product = torch.autograd.grad(
                        [gradient[number] for number in alive],
                        self.parameters,
                        [pieces[number] for number in alive],
                        retain_graph=True,
                        materialize_grads=True,
                    )
                    row += torch.cat([piece.reshape(-1) for piece in product])
        return total

    def sample_gradients(self, chunk: int) -> Iterator[Tensor]:
        """Gradients of the loss of single images, ``(images, size)``, a chunk of images at a time."""
        import torch
        from torch.func import functional_call, grad, vmap
        from torch.nn import functional as F

        theta = {name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)}

        def loss(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            out = functional_call(self.network, theta, (image[None],))
            return F.cross_entropy(getattr(out, "logits", out), label[None])

        gradients = vmap(grad(loss), (None, 0, 0))
        for images, labels in self.batches:
            for start in range(0, len(labels), chunk):
                with _twice_differentiable(self.measure):
                    found = gradients(theta, images[start : start + chunk], labels[start : start + chunk])
                yield torch.cat([found[name].flatten(1) for name in self.names], dim=1)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector as tensors of the shapes of the parameters, on the CPU."""
        pieces = self._pieces(vector.cpu())
        return {name: piece.clone() for name, piece in zip(self.names, pieces, strict=True)}

    def layers(self) -> dict[str, list[int]]:
        """From each layer (the module that has the parameters) to the places of its parameters in `names`."""
        found: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            found.setdefault(name.rpartition(".")[0], []).append(number)
        return found

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        import torch

        pieces = torch.split(vector, self.sizes)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]


def rademacher(loss: MeanLoss, purpose: str, seed: int, numbers: Sequence[int]) -> Tensor:
    """Vectors of random signs; each depends on its own number, so that groups of any size are the same."""
    import torch

    rows = [
        torch.randint(0, 2, (loss.size,), generator=generator(purpose, int(seed), number), dtype=torch.int8)
        for number in numbers
    ]
    return torch.stack(rows).to(loss.device, loss.dtype).mul_(2).sub_(1)


def _at(measure: str, model: nn.Module, theta: Weights) -> nn.Module:
    """A copy of the network with the weights, in evaluation mode, at least in single precision."""
    import torch

    given = {
        name: value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        for name, value in ((name, theta[name]) for name in theta)
    }
    expected = model.state_dict()
    wrong = [
        *(f"{name!r} is missing" for name in expected if name not in given),
        *(f"{name!r} is unknown" for name in given if name not in expected),
        *(
            f"{name!r} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in given and given[name].shape != tensor.shape
        ),
    ]
    if wrong:
        raise InputError(
            f"{measure}: theta: expected the {len(expected)} tensors of the network, got {len(given)}: "
            f"{'; '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}."
        )
    dtype = torch.float32
    for tensor in given.values():
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    network = copy.deepcopy(model).to(dtype)
    network.load_state_dict(given)
    return network.eval()


@contextmanager
def _twice_differentiable(measure: str) -> Iterator[None]:
    """Attention in the form that has second derivatives, and a message where an operation has none."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise InputError(
            f"{measure}: expected a network that can be differentiated twice, got one with an operation that "
            f"cannot ({str(error).splitlines()[0]}). Put another form of that layer in its place."
        ) from error


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
