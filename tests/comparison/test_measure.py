"""Numbers of a system against loops over members, samples and classes."""

import itertools
import math

import pytest
import torch

from mirepoix.comparison import MEASURES, quality
from mirepoix.comparison._measure import cost_of, number, predict_members
from mirepoix.ensembles import average_logits
from mirepoix.models import NetworkSpec, member_weights
from mirepoix.predictions import predict
from mirepoix.types import Batch


def softmax(row):
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    return [power / sum(powers) for power in powers]


def first_of(values):
    return max(range(len(values)), key=lambda k: values[k])


def by_loops(logits, labels):
    """Logits as lists (members, samples, classes)."""
    members, samples, classes = len(logits), len(labels), len(logits[0][0])
    mean = [[sum(own[n][k] for own in logits) / members for k in range(classes)] for n in range(samples)]
    probabilities = [softmax(row) for row in mean]
    averaged = [
        [sum(softmax(own[n])[k] for own in logits) / members for k in range(classes)] for n in range(samples)
    ]
    predicted = [[first_of(own[n]) for n in range(samples)] for own in logits]
    errors = [sum(p != y for p, y in zip(own, labels, strict=True)) / samples for own in predicted]
    bins: dict[int, list[int]] = {}
    for n in range(samples):
        bins.setdefault(math.ceil(max(probabilities[n]) * 15) - 1, []).append(n)
    ratios, differences, apart = [], [], []
    for i, j in itertools.combinations(range(members), 2):
        right = [[predicted[m][n] == labels[n] for n in range(samples)] for m in (i, j)]
        one = sum(a != b for a, b in zip(*right, strict=True))
        none = sum(not a and not b for a, b in zip(*right, strict=True))
        ratios.append(one / none)
        different = sum(a != b for a, b in zip(predicted[i], predicted[j], strict=True)) / samples
        apart.append(different)
        differences.append(different / max(errors[i], errors[j]))
    return {
        "accuracy": sum(first_of(mean[n]) == labels[n] for n in range(samples)) / samples,
        "member_accuracy": 1 - sum(errors) / members,
        "accuracy_of_probabilities": sum(first_of(averaged[n]) == labels[n] for n in range(samples))
        / samples,
        "nll": -sum(math.log(probabilities[n][labels[n]]) for n in range(samples)) / samples,
        "brier": sum(
            (probabilities[n][k] - (labels[n] == k)) ** 2 for n in range(samples) for k in range(classes)
        )
        / samples,
        "ece": sum(
            abs(sum((first_of(mean[n]) == labels[n]) - max(probabilities[n]) for n in inside)) / samples
            for inside in bins.values()
        ),
        "ratio_error": sum(ratios) / len(ratios),
        "normalised_difference": sum(differences) / len(differences),
        "disagreement": sum(apart) / len(apart),
    }


def drawn(members=3, samples=60, classes=4):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=random)
    logits = torch.randn(members, samples, classes, generator=random, dtype=torch.float64)
    logits += 2 * torch.nn.functional.one_hot(labels, classes)
    return logits, labels


def test_the_numbers_are_those_of_loops():
    logits, labels = drawn()
    found, expected = quality(logits, labels), by_loops(logits.tolist(), labels.tolist())
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_the_calibrated_loss_is_that_of_half_and_half():
    from mirepoix.calibration import calibrated

    logits, labels = drawn()
    logits = 10 * (logits - 1.5 * torch.nn.functional.one_hot(labels, 4))
    found, expected = quality(logits, labels), calibrated(average_logits(logits), labels)
    assert found["calibrated_nll"] == pytest.approx(expected.nll)
    assert found["temperature"] == pytest.approx(expected.temperature)
    assert found["calibrated_nll"] < found["nll"]


def test_one_member_has_no_diversity():
    logits, labels = drawn(members=1)
    found = quality(logits, labels)
    assert found["accuracy"] == found["member_accuracy"] == found["accuracy_of_probabilities"]
    assert {found[name] for name in ("ratio_error", "normalised_difference", "disagreement")} == {None}


def test_members_that_share_no_error_are_infinitely_diverse():
    labels = torch.tensor([0, 0, 1])
    logits = torch.tensor([[[9.0, 0], [0, 9], [0, 9]], [[0.0, 9], [9, 0], [0, 9]]])
    assert quality(logits, labels)["ratio_error"] == "infinite"
    assert number(math.nan) is None


def test_every_number_of_quality_is_a_measure():
    logits, labels = drawn()
    assert set(quality(logits, labels)) - {"member_accuracies"} <= set(MEASURES)


NETWORK = NetworkSpec(name="cifar_resnet20", classes=3, frozen_batch_norm=False)


def test_members_of_branches_predict_as_networks_of_their_own():
    spec = NetworkSpec(
        name="cifar_resnet20", classes=3, members=3, split_at="last_stage", frozen_batch_norm=False
    )
    whole = spec.build(seed=1)
    batches = [
        Batch(torch.randn(n, 3, 16, 16), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))
        for n in (4, 2)
    ]
    found = predict_members(whole, batches)
    assert found.shape == (3, 6, 3)
    assert whole.training
    for m in range(3):
        alone = NETWORK.build()
        alone.load_state_dict(member_weights(whole.state_dict(), m))
        torch.testing.assert_close(found[m], predict(alone, batches), rtol=1e-4, atol=1e-5)


def test_cost_is_counted_in_networks():
    plain = cost_of(NETWORK, 3, 32)
    parameters = sum(parameter.numel() for parameter in NETWORK.build().parameters())
    assert plain == {"parameters": 3 * parameters, "forward_cost": 3.0}
    inputs = cost_of(NetworkSpec(name="cifar_resnet20", classes=3, inputs=2), 1, 32)
    # One more convolution of 3 to 16 channels, and one more classifier, of 41 million multiplications.
    more = (27 * 16 * 32 * 32 + 64 * 3) / 40.55e6
    assert inputs["forward_cost"] == pytest.approx(1 + more, rel=2e-3)
    assert inputs["parameters"] == parameters + 27 * 16 + 65 * 3
    branches = cost_of(NetworkSpec(name="cifar_resnet20", classes=3, members=4, split_at="layer3"), 2, 32)
    assert 2 * 1.5 < branches["forward_cost"] < 2 * 2.5  # a third of the network four times
    apart = cost_of(NetworkSpec(name="cifar_resnet20", classes=3, members=4), 1, 32)
    assert apart["forward_cost"] == pytest.approx(4)
