"""Small networks and images, and their Hessian written out by another way."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from mirepoix.types import Batch


def small_network(seed: int = 0) -> nn.Sequential:
    """57 weights in float64, in three layers of 30, 21 and 6; smooth, so that every part of the Hessian counts."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Linear(3, 2, bias=False)).double()


def relu_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()


def batches_of(sizes: Sequence[int] = (7, 2, 5), features: int = 4, classes: int = 2) -> list[Batch]:
    """Batches of unequal sizes, which a mean of batch means would weigh wrongly."""
    random = torch.Generator().manual_seed(1)
    made = []
    for size in sizes:
        images = torch.randn(size, features, generator=random, dtype=torch.float64)
        labels = torch.randint(0, classes, (size,), generator=random)
        made.append(Batch(images, labels, torch.zeros_like(labels)))
    return made


def joined(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def full_hessian(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """By torch.func, over all parameters in the order of the network."""
    images, labels = joined(batches)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in theta.values()])

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in theta.values()])
        given = {name: piece.view_as(p) for (name, p), piece in zip(theta.items(), pieces, strict=True)}
        out = functional_call(model, given, (images,))
        return F.cross_entropy(getattr(out, "logits", out), labels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own rules for forward derivatives use something deprecated
        return hessian(loss)(flat)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
