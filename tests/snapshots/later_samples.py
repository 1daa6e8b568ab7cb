"""A tiny network in double precision, earlier members of it, and updates beside those of a reference."""

import pytest
import torch
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.data import draw
from mirepoix.models import Network, NetworkSpec, initial_weights
from mirepoix.objectives import ERM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch

CLASSES = 3


class Plain(nn.Module):
    """A convolution with a kernel as large as the image, and a tanh."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (1, 2))
        self.unused = nn.Identity()

    def forward(self, images):
        return torch.tanh(self.conv(images).flatten(1))


class PlainSpec(NetworkSpec):
    """The network of `tests.reference.later`."""

    def build(self, *, dropout=0.0, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(Plain(), 4, self.classes, dropout=dropout).double()


SPEC = PlainSpec(name="mnist_cnn", classes=CLASSES, channels=1)


def weights(seed, spec=SPEC):
    return {name: value.clone() for name, value in spec.build(seed=seed).state_dict().items()}


def network(seed=0):
    return SPEC.build(seed=seed).train()


def drawn(step, sizes=(3, 2), dtype=torch.float64):
    random = torch.Generator().manual_seed(step)
    return [
        Batch(
            torch.randn(size, 1, 1, 2, generator=random, dtype=torch.float64).to(dtype),
            torch.randint(CLASSES, (size,), generator=random),
            torch.full((size,), place),
        )
        for place, size in enumerate(sizes)
    ]


def joined(batches):
    images = torch.cat([batch.images for batch in batches])
    return images, torch.cat([batch.labels for batch in batches]).tolist()


def adam_of(model, objective, lr=0.05):
    every = [*model.parameters(), *objective.trained_with_network()]
    return torch.optim.Adam(every, lr=lr, weight_decay=0.01)


def assert_updates_are(reference, objective, sizes=(3, 2), updates=3):
    """``reference(theta, images, labels)`` is a loss with its parts; both take three steps of Adam."""
    model = network()
    optimizer, memory = adam_of(model, objective), new_adam()
    theta = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    for step in range(updates):
        expected, parts = reference(theta, *joined(drawn(step, sizes)))
        theta = adam_step(theta, expected, memory)
        torch.manual_seed(step)
        logged = objective.step(model, drawn(step, sizes), optimizer)
        assert set(logged) >= {"loss", *parts}
        for name, value in {"loss": expected, **parts}.items():
            assert logged[name].item() == pytest.approx(value.item(), rel=1e-10, abs=1e-12), name
        for name, value in model.named_parameters():
            assert (value - theta[name]).abs().max() < 1e-10, name


REAL = tiny_network(4)
SPLIT = tiny_task(images=24, classes=4).split("domain_2")
RUN = Run(steps=30, learning_rate=3e-3, batch_size=12, check_every=30)


def first_member():
    """A tiny real network after a short training."""
    return (
        Trainer(REAL, ERM(), loop=Loop(device="cpu")).fit(initial_weights(REAL), SPLIT, RUN).weights["last"]
    )


def moved(theta, size=0.3, seed=1):
    """Weights next to others: each entry moved by a share of the spread of its tensor."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: value + size * value.std(correction=0) * torch.randn(value.shape, generator=random)
        for name, value in theta.items()
    }


def trained(objective, theta, run=RUN):
    return Trainer(REAL, objective, loop=Loop(device="cpu")).fit(theta, SPLIT, run).weights["last"]


def real_features(theta):
    """Of 48 training images, by a network in evaluation mode."""
    model = REAL.build().eval()
    model.load_state_dict(dict(theta))
    batches = draw(SPLIT, 0, batch_size=24, seed=0, augment=False, device=torch.device("cpu"))
    with torch.no_grad():
        return model(torch.cat([batch.images for batch in batches])).features
