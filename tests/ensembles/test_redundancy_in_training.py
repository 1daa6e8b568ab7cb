"""What the discriminator of a criterion finds in features whose redundancy is known, with members that stay put."""

import math

import pytest
import torch
from torch import nn

from mirepoix.ensembles import CEBR, DICE, IBR
from mirepoix.types import Batch, Outputs

SIZE, SAMPLES, CLASSES = 2, 128, 2


class Given(nn.Module):
    """Two members whose features are in the image."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.ModuleList(nn.Linear(SIZE, CLASSES) for _ in range(2))

    def forward(self, images):
        features = torch.stack(images.flatten(1).split(SIZE, 1))
        logits = [own(h) for own, h in zip(self.classifier, features, strict=True)]
        return Outputs(features=features, logits=torch.stack(logits))


def correlated(rho):
    """Features of two members with this correlation within each class; each is standard normal there."""

    def draw(labels, random):
        first, noise = torch.randn(2, len(labels), SIZE, generator=random)
        second = rho * first + math.sqrt(1 - rho**2) * noise
        return torch.cat([first, second], 1)

    return draw


def of_the_class(draw):
    """The same, in another place for each class."""
    return lambda labels, random: draw(labels, random) + 2.0 * (2 * labels[:, None] - 1)


def found(kind, draw, steps=100, **options):
    """Estimated redundancy and the discriminator's accuracy, on the later half of the batches."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Given()
    criterion = kind(
        features=SIZE, classes=CLASSES, members=2, hidden=(32, 32), embedding=4, tau=50.0, **options
    )
    nn.init.constant_(criterion.scale_bias, -60.0)  # hardly any noise
    still = torch.optim.SGD([*model.parameters(), *criterion.trained_with_network()], lr=0.0)
    logged = []
    for step in range(steps):
        labels = torch.randint(CLASSES, (SAMPLES,), generator=random)
        images = draw(labels, random)[:, None, None]
        values = criterion.step(model, [Batch(images, labels, torch.zeros_like(labels))], still)
        if step >= steps // 2:
            logged.append([values["redundancy"].item(), values["discriminator_accuracy"].item()])
    return [sum(values) / len(values) for values in zip(*logged, strict=True)]


def information_of_the_class():
    """What each member says of the class, in nats, by adding up its density along the line between the classes."""
    half = 2 * math.sqrt(SIZE)  # of the distance
    at = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    density = torch.exp(-((at - half) ** 2) / 2) / math.sqrt(2 * math.pi)
    return math.log(2) - (density * torch.nn.functional.softplus(-2 * half * at)).sum().item() * 40 / 40_000


def test_members_that_say_the_same_are_told_apart_from_pairs():
    redundancy, accuracy = found(DICE, correlated(1.0))
    assert redundancy > 3
    assert accuracy > 0.95


@pytest.mark.parametrize("partners", ["queue", "batch", "balanced"])
def test_members_that_have_the_class_alone_in_common_are_not_redundant_given_it(partners):
    redundancy, accuracy = found(DICE, of_the_class(correlated(0.0)), partners=partners)
    assert abs(redundancy) < 0.03
    assert accuracy == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("kind", [IBR, CEBR])
def test_where_the_class_is_not_told_it_is_redundant_too(kind):
    redundancy, accuracy = found(kind, of_the_class(correlated(0.0)))
    # Given the class they are independent, and both together leave hardly a doubt of it.
    assert redundancy == pytest.approx(2 * information_of_the_class() - math.log(2), abs=0.1)
    assert accuracy > 0.7


def test_independent_members_are_not_redundant():
    redundancy, accuracy = found(IBR, correlated(0.0))
    assert abs(redundancy) < 0.03
    assert accuracy == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize(("kind", "place"), [(DICE, of_the_class), (IBR, lambda draw: draw)])
def test_the_redundancy_of_correlated_gaussians_is_the_one_that_is_known(kind, place, rho):
    expected = -SIZE * 0.5 * math.log(1 - rho**2)
    redundancy, _ = found(kind, place(correlated(rho)))
    # The discriminator has seen few batches and its learning rate stays, so a seventh is missing at most.
    assert 6 / 7 * expected - 0.02 < redundancy < expected + 0.05
