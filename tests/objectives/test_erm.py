import math

import pytest
import torch
from torch import nn

from mirepoix.objectives import ERM
from mirepoix.types import Batch, Outputs


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]], dtype=torch.float64))

    def forward(self, images):
        features = images.flatten(1)
        return Outputs(features, features @ self.weight.T)


def batches(sizes=(3, 5), classes=3):
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(n, 1, 1, 2, generator=random, dtype=torch.float64),
            torch.randint(classes, (n,), generator=random),
            torch.full((n,), domain),
        )
        for domain, n in enumerate(sizes)
    ]


def slow_erm(model, given):
    """Sample by sample, in plain Python."""
    losses = []
    for batch in given:
        for image, label in zip(batch.images, batch.labels, strict=True):
            logits = (model.weight.detach() @ image.flatten()).tolist()
            losses.append(math.log(sum(map(math.exp, logits))) - logits[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sizes", [(3, 5), (1,), (1, 7, 2)])
def test_erm_is_the_mean_over_all_samples_of_all_domains(sizes):
    model, given = Linear(), batches(sizes)
    assert ERM()(model, given).item() == pytest.approx(slow_erm(model, given), abs=1e-12)


def test_a_step_is_gradient_descent_on_the_loss():
    model, given = Linear(), batches()
    before = model.weight.detach().clone()
    step = 1e-6
    expected = torch.zeros_like(before)
    for i in range(3):
        for j in range(2):
            shifted = []
            for sign in (1, -1):
                with torch.no_grad():
                    model.weight.copy_(before)
                    model.weight[i, j] += sign * step
                shifted.append(slow_erm(model, given))
            expected[i, j] = (shifted[0] - shifted[1]) / (2 * step)
    with torch.no_grad():
        model.weight.copy_(before)
    logged = ERM().step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(before - model.weight.detach(), 0.1 * expected, rtol=1e-6, atol=1e-9)
    assert logged["loss"].item() == pytest.approx(slow_erm(_with(before), given))
    assert not logged["loss"].requires_grad


def _with(weight):
    model = Linear()
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


def test_gradients_of_an_earlier_step_are_forgotten():
    model, given = Linear(), batches()
    model.weight.grad = torch.full_like(model.weight, 1e6)
    ERM().step(model, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.weight.abs().max() < 10
