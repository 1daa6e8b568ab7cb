"""Wrong labels: how they are made, counted and followed between two models."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.evidence._label_corruption import corrupt_labels, forgetting_curve, memorisation, recovery
from mirepoix.types import InputError

# Making them.


@given(st.integers(0, 60), st.integers(2, 9), st.floats(0, 1), st.integers(0, 99))
def test_the_share_that_was_asked_for_is_wrong(count: int, classes: int, fraction: float, seed: int) -> None:
    labels = torch.arange(count) % classes
    noisy = corrupt_labels(labels, classes, fraction, seed)
    assert int((noisy != labels).sum()) == math.floor(fraction * count + 0.5)
    assert noisy.dtype == labels.dtype
    assert ((noisy >= 0) & (noisy < classes)).all()
    assert torch.equal(labels, torch.arange(count) % classes)
    assert torch.equal(noisy, corrupt_labels(labels, classes, fraction, seed))


def test_every_other_class_and_every_sample_is_equally_likely() -> None:
    labels = torch.full((3000,), 2)
    noisy = corrupt_labels(labels, 5, 1.0, seed=0)
    counts = torch.bincount(noisy, minlength=5)
    assert counts[2] == 0
    # Binomial with 3,000 draws at 1/4: a standard deviation of 24.
    assert (counts[[0, 1, 3, 4]] - 750).abs().max() < 4 * 24
    where = sum((corrupt_labels(labels[:40], 5, 0.25, seed) != 2).double() for seed in range(400))
    # 400 draws at 1/4: 100 with a standard deviation of 8.7.
    assert isinstance(where, torch.Tensor)
    assert (where - 100).abs().max() < 4 * 8.7


def test_seeds_differ_and_dtypes_stay() -> None:
    labels = torch.zeros(50, dtype=torch.int32)
    one, two = corrupt_labels(labels, 3, 0.4, 0), corrupt_labels(labels, 3, 0.4, 1)
    assert not torch.equal(one, two)
    assert one.dtype == torch.int32


# Counting them.


@given(st.integers(0, 1000), st.integers(1, 40))
def test_shares_are_those_of_a_loop(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    predicted, labels, corrupted = random.integers(3, size=(3, count))
    wrong = [n for n in range(count) if corrupted[n] != labels[n]]
    given_ = [torch.as_tensor(x) for x in (predicted, labels, corrupted)]
    repeated, recovered = memorisation(*given_), recovery(*given_)
    if not wrong:
        assert math.isnan(repeated)
        assert math.isnan(recovered)
        return
    assert repeated == pytest.approx(sum(predicted[n] == corrupted[n] for n in wrong) / len(wrong))
    assert recovered == pytest.approx(sum(predicted[n] == labels[n] for n in wrong) / len(wrong))
    assert repeated + recovered <= 1


# Following them.


def linear(samples: int = 80, classes: int = 4, seed: int = 0) -> Any:
    """Weights that are the logits of all samples: the average of weights is the average of logits."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=random)
    noisy = corrupt_labels(labels, classes, 0.25, seed)

    def theta(target: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = 2 * torch.nn.functional.one_hot(target, classes)
        return {"w": scores + torch.randn(samples, classes, generator=random, dtype=torch.float64)}

    return theta(noisy), theta(labels), labels, noisy


def test_where_logits_are_linear_in_weights_averages_are_ensembles_of_logits() -> None:
    a, b, labels, noisy = linear()
    found = forgetting_curve(
        a,
        b,
        lambda theta: theta["w"],
        labels,
        noisy,
        test_predict=lambda theta: theta["w"][:7],
        test_labels=noisy[:7],
    )
    assert found["average"] == found["logits"]
    assert found["average"] != found["probabilities"]
    assert (found["samples"], found["wrong_labels"]) == (80, 20)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_points_are_the_measures_of_the_combined_predictions() -> None:
    a, b, labels, noisy = linear(seed=1)
    shares = (0.0, 0.3, 0.5, 1.0)
    found = forgetting_curve(
        a,
        b,
        lambda theta: theta["w"] ** 3,
        labels,
        noisy,
        test_predict=lambda theta: theta["w"].flip(0),
        test_labels=labels.flip(0),
        lambdas=shares,
    )
    for k, share in enumerate(shares):
        by = {
            "average": ((1 - share) * a["w"] + share * b["w"]) ** 3,
            "logits": (1 - share) * a["w"] ** 3 + share * b["w"] ** 3,
            "probabilities": (1 - share) * (a["w"] ** 3).softmax(1) + share * (b["w"] ** 3).softmax(1),
        }
        test = {
            "average": (1 - share) * a["w"] + share * b["w"],
            "logits": (1 - share) * a["w"] + share * b["w"],
            "probabilities": (1 - share) * a["w"].softmax(1) + share * b["w"].softmax(1),
        }
        for key, scores in by.items():
            predicted, clean = scores.argmax(1), noisy == labels
            point = found[key][k]
            assert point["lambda"] == share
            assert point["memorisation"] == memorisation(predicted, labels, noisy)
            assert point["recovery"] == recovery(predicted, labels, noisy)
            assert point["accuracy"] == pytest.approx(float((predicted == labels)[clean].double().mean()))
            assert point["test_accuracy"] == pytest.approx(
                float((test[key].argmax(1) == labels).double().mean())
            )
    ends = [[found[key][k] for key in ("average", "logits", "probabilities")] for k in (0, 3)]
    for points in ends:
        assert points[0] == points[1] == points[2]
    assert ends[0][0]["memorisation"] > 0.5 > ends[1][0]["memorisation"]


def test_a_sure_mistake_outvotes_in_probabilities_what_logits_settle() -> None:
    # A is wrong by 3 nats, B right by 9: at 0.3 the logits say right, the probabilities wrong.
    a, b = {"w": torch.tensor([[0.0, 3.0]])}, {"w": torch.tensor([[9.0, 0.0]])}
    found = forgetting_curve(
        a, b, lambda theta: theta["w"], torch.tensor([0]), torch.tensor([1]), lambdas=[0.3]
    )
    assert found["logits"][0]["memorisation"] == 0
    assert found["probabilities"][0]["memorisation"] == 1


def test_without_wrong_labels_or_without_a_test_there_is_none() -> None:
    a, b, labels, _ = linear(10)
    found = forgetting_curve(a, b, lambda theta: theta["w"], labels, labels, lambdas=[0.0, 0.5])
    for point in found["average"]:
        assert (point["memorisation"], point["recovery"], point["test_accuracy"]) == (None, None, None)
    everything = corrupt_labels(labels, 4, 1.0, 0)
    found = forgetting_curve(a, b, lambda theta: theta["w"], labels, everything, lambdas=[0.5])
    assert found["average"][0]["accuracy"] is None


def test_minus_infinity_at_an_end_is_no_number_times_zero() -> None:
    a, b = {"w": torch.tensor([[0.0, -1e308]])}, {"w": torch.tensor([[0.0, 1.0]])}
    found = forgetting_curve(
        a, b, lambda theta: theta["w"] * 10, torch.tensor([1]), torch.tensor([0]), lambdas=[0.0, 1.0]
    )
    assert [point["memorisation"] for point in found["logits"]] == [1.0, 0.0]


def test_inputs_are_untouched() -> None:
    a, b, labels, noisy = linear()
    before = [a["w"].clone(), b["w"].clone(), labels.clone(), noisy.clone()]
    forgetting_curve(a, b, lambda theta: theta["w"], labels, noisy)
    for old, new in zip(before, (a["w"], b["w"], labels, noisy), strict=True):
        assert torch.equal(old, new)


Y = torch.tensor([0, 1])
THETA = {"w": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: corrupt_labels(Y, 2, 1.5, 0),
            "expected a fraction from 0 to 1 and two classes, got 1.5 and 2",
        ),
        (lambda: corrupt_labels(Y, 1, 0.5, 0), "got 0.5 and 1"),
        (lambda: corrupt_labels(Y + 1, 2, 0.5, 0), "expected 0 to 1 for 2 classes, got 1 to 2"),
        (
            lambda: corrupt_labels(Y.float(), 2, 0.5, 0),
            "labels: expected classes of shape (samples,), got torch.fl",
        ),
        (lambda: memorisation(Y[:1], Y, Y), "predicted: expected 2 classes, one for each label, got 1"),
        (lambda: recovery(Y, Y, Y[:1]), "corrupted: expected 2 classes"),
        (lambda: memorisation(torch.zeros(2, 2), Y, Y), "predicted: expected classes of shape"),
        (
            lambda: forgetting_curve(THETA, THETA, lambda theta: theta["w"][0], Y, Y),
            "expected logits of shape (2, classes) for A, got (2,)",
        ),
        (
            lambda: forgetting_curve(THETA, THETA, lambda theta: theta["w"], Y, Y, lambdas=[1.5]),
            "lambdas: expected numbers from 0 to 1, got [1.5]",
        ),
        (lambda: forgetting_curve(THETA, THETA, lambda theta: theta["w"], Y, Y, lambdas=[]), "got []"),
        (
            lambda: forgetting_curve(THETA, THETA, lambda theta: theta["w"], Y, Y, test_labels=Y),
            "test_predict and test_labels together",
        ),
    ],
)
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()
