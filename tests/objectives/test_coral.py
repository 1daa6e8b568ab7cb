import math

import pytest
import torch
from tests.objectives.test_erm import Linear, batches, slow_erm
from torch import nn

from mirepoix.objectives import CORAL, ERM
from mirepoix.types import Batch, InputError, Outputs


class TwoLayers(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(width, 2, generator=random, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(3, width, generator=random, dtype=torch.float64))

    def forward(self, images):
        features = torch.tanh(images.flatten(1) @ self.first.T)
        return Outputs(features, features @ self.last.T)


def slow_distance(one, other):
    """Entry by entry, in plain Python, from two lists of features."""

    def moments(rows):
        n, d = len(rows), len(rows[0])
        mean = [sum(row[k] for row in rows) / n for k in range(d)]
        covariance = [
            [sum((row[k] - mean[k]) * (row[m] - mean[m]) for row in rows) / (n - 1) for m in range(d)]
            for k in range(d)
        ]
        return mean, covariance

    (mean, covariance), (mean2, covariance2) = moments(one), moments(other)
    d = len(mean)
    of_means = sum((mean[k] - mean2[k]) ** 2 for k in range(d)) / d
    of_covariances = (
        sum((covariance[k][m] - covariance2[k][m]) ** 2 for k in range(d) for m in range(d)) / d**2
    )
    return of_means + of_covariances


def slow_coral(model, given, weight):
    domains = len(given)
    risk = 0.0
    features = []
    for batch in given:
        outputs = model(batch.images)
        rows = outputs.logits.tolist()
        losses = [
            math.log(sum(map(math.exp, row))) - row[label]
            for row, label in zip(rows, batch.labels, strict=True)
        ]
        risk += sum(losses) / len(losses) / domains
        features.append(outputs.features.tolist())
    penalty = sum(
        slow_distance(features[e], features[f]) for e in range(domains) for f in range(e + 1, domains)
    )
    return risk + weight * 2 / (domains * (domains - 1)) * penalty


@pytest.mark.parametrize("weight", [1.0, 0.3, 40.0])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 7, 3), (3, 3, 3, 5)])
def test_coral_is_the_mean_risk_and_the_distance_of_moments(sizes, weight):
    model, given = TwoLayers(), batches(sizes)
    assert CORAL(weight)(model, given).item() == pytest.approx(slow_coral(model, given, weight), rel=1e-12)


def test_two_domains_of_two_samples_by_hand():
    def model(images):
        features = images.flatten(1)
        return Outputs(features, torch.zeros(len(features), 2, dtype=torch.float64))

    def domain(first, second):
        images = torch.tensor([first, second], dtype=torch.float64).reshape(2, 1, 1, 2)
        return Batch(images, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))

    # Means (1, 0) and (0, 2): (1 + 4) / 2. Covariances [[2, 0], [0, 0]] and [[2, 2], [2, 2]]: (0 + 4 + 4 + 4) / 4.
    given = [domain([0, 0], [2, 0]), domain([-1, 1], [1, 3])]
    assert CORAL(1.0)(model, given).item() == pytest.approx(math.log(2) + 2.5 + 3, abs=1e-12)
    assert CORAL(10.0)(model, given).item() == pytest.approx(math.log(2) + 55, abs=1e-12)


def test_weight_zero_is_erm_on_domains_of_one_size():
    one, two = TwoLayers(), TwoLayers()
    given = batches((4, 4, 4))
    CORAL(0.0).step(one, given, torch.optim.SGD(one.parameters(), lr=0.1))
    ERM().step(two, given, torch.optim.SGD(two.parameters(), lr=0.1))
    for (
        name,
        value,
    ) in two.state_dict().items():  # up to rounding: one forward pass per domain here, a joint one there
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_domains_weigh_the_same_whatever_their_size():
    model, given = Linear(), batches((2, 6))
    expected = (slow_erm(model, given[:1]) + slow_erm(model, given[1:])) / 2
    assert CORAL(0.0)(model, given).item() == pytest.approx(expected, abs=1e-12)
    assert abs(expected - slow_erm(model, given)) > 1e-3


def test_equal_domains_have_no_penalty():
    model, (batch,) = TwoLayers(), batches((5,))
    torch.testing.assert_close(CORAL(100.0)(model, [batch] * 3), ERM()(model, [batch]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 6])
def test_one_domain_has_no_penalty(size):
    model, given = TwoLayers(), batches((size,))
    assert torch.equal(CORAL(100.0)(model, given), ERM()(model, given))


def test_the_order_of_domains_does_not_matter():
    model, given = TwoLayers(), batches((3, 4, 5))
    torch.testing.assert_close(CORAL()(model, given), CORAL()(model, given[::-1]), rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_the_formula():
    model, given = TwoLayers(), batches((3, 4))
    CORAL(2.0)(model, given).backward()
    step = 1e-6
    for parameter in model.parameters():
        for place in range(parameter.numel()):
            values = []
            with torch.no_grad():
                for sign in (1, -1):
                    parameter.view(-1)[place] += sign * step
                    values.append(slow_coral(model, given, 2.0))
                    parameter.view(-1)[place] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert parameter.grad.view(-1)[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_moments_are_not_taken_in_half_precision():
    def model(images):
        features = images.flatten(1).half()  # as under autocast; the squares are beyond half precision
        return Outputs(features, torch.zeros(len(features), 2))

    given = [
        Batch(scale * batch.images.float(), batch.labels % 2, batch.domains)
        for scale, batch in zip((1000.0, 2000.0), batches(), strict=True)
    ]
    expected = CORAL()(model, given)
    assert expected.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(CORAL()(model, given), expected)


def test_a_domain_of_one_sample_is_refused():
    with pytest.raises(
        InputError, match=r"CORAL needs at least 2 samples per domain .* got 1 of domain \[1\].*larger batch"
    ):
        CORAL()(TwoLayers(), batches((3, 1)))


def test_the_option_is_named():
    assert CORAL().configuration() == {"mmd_gamma": 1.0}
    assert CORAL(mmd_gamma=3).configuration() == {"mmd_gamma": 3.0}
    assert CORAL().state_dict() == {}


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_the_weight_must_be_a_number_from_zero(weight):
    with pytest.raises(InputError, match="CORAL needs a finite mmd_gamma of 0 or more, got"):
        CORAL(weight)
