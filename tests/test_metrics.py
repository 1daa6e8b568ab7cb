"""Metrics: torchmetrics as a second opinion, values by hand, corners."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import mirepoix.metrics
from mirepoix.metrics import (
    accuracy,
    adaptive_ece,
    brier,
    by_domain,
    confidence_auroc,
    ece,
    nll,
    tace,
    top_k_accuracy,
    worst_domain,
)
from mirepoix.types import InputError

METRICS = [accuracy, top_k_accuracy, nll, ece, adaptive_ece, tace, confidence_auroc, brier]
HIGHER_IS_BETTER = {metric: metric in (accuracy, top_k_accuracy, confidence_auroc) for metric in METRICS}


def samples(
    count: int = 200, classes: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=random, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (count,), generator=random)


def unchecked() -> Any:
    """The module as it is in production, where annotated shapes are not checked."""
    spec = importlib.util.spec_from_file_location("unchecked_metrics", mirepoix.metrics.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees(seed: int) -> None:
    logits, labels = samples(seed=seed)

    def top(k: int) -> torch.Tensor:
        return reference.multiclass_accuracy(logits, labels, 7, average="micro", top_k=k).double()

    def calibration(bins: int) -> torch.Tensor:
        return reference.multiclass_calibration_error(logits, labels, 7, n_bins=bins).double()

    loose: dict[str, float] = {"rtol": 0, "atol": 1e-6}  # torchmetrics bins and counts in float32
    torch.testing.assert_close(accuracy(logits, labels), top(1), **loose)
    torch.testing.assert_close(top_k_accuracy(logits, labels, k=3), top(3), **loose)
    torch.testing.assert_close(top_k_accuracy(logits, labels), top(5), **loose)
    torch.testing.assert_close(ece(logits, labels), calibration(15), **loose)
    torch.testing.assert_close(ece(logits, labels, bins=4), calibration(4), **loose)
    torch.testing.assert_close(nll(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


def test_brier_is_the_definition_in_loops() -> None:
    logits, labels = samples(20, 3)
    total = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        total += sum((p[k] - (k == y)) ** 2 for k in range(3))
    assert float(brier(logits, labels)) == pytest.approx(total / 20, rel=1e-12)


def test_by_hand() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]], dtype=torch.float64).log()
    labels = torch.tensor([0, 2, 0])
    assert float(accuracy(logits, labels)) == pytest.approx(1 / 3)
    assert float(top_k_accuracy(logits, labels, k=2)) == pytest.approx(2 / 3)
    assert float(top_k_accuracy(logits, labels, k=3)) == 1
    assert float(nll(logits, labels)) == pytest.approx(-(math.log(0.7) + math.log(0.1) + math.log(0.4)) / 3)
    assert float(brier(logits, labels)) == pytest.approx((0.14 + 1.46 + 0.62) / 3)
    # Two bins: 0.5 falls in the first, 0.7 and 0.8 in the second.
    assert float(ece(logits, labels, bins=2)) == pytest.approx(1 / 3 * 0.5 + 2 / 3 * abs(0.5 - 0.75))
    assert float(ece(logits, labels, bins=1)) == pytest.approx(abs(1 / 3 - 2 / 3))


def test_bins_are_closed_on_the_right_and_certainty_is_in_the_last() -> None:
    # Right with confidence 1/2 and wrong with confidence 3/4: apart they cost, in one bin they would cancel.
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1])
    assert float(ece(logits, labels, bins=2)) == pytest.approx((0.5 + 0.75) / 2)
    certain = torch.tensor([[0.0, -math.inf], [0.0, -1e4]])
    assert float(ece(certain, torch.tensor([0, 0]))) == 0
    assert float(ece(certain, torch.tensor([1, 1]))) == 1


def test_equal_logits_are_ranked_by_class() -> None:
    logits = torch.zeros(3, 3)
    labels = torch.tensor([0, 1, 2])
    assert [float(top_k_accuracy(logits, labels, k=k)) for k in (1, 2, 3, 9)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1]
    )
    assert float(accuracy(logits, labels)) == pytest.approx(1 / 3)


def test_a_label_of_probability_zero_makes_nll_infinite() -> None:
    logits = torch.tensor([[0.0, -math.inf]])
    assert nll(logits, torch.tensor([1])) == math.inf
    assert nll(logits, torch.tensor([0])) == 0
    assert brier(logits, torch.tensor([1])) == 2


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 30), classes=st.integers(1, 8))
def test_order_of_samples_and_a_shift_of_logits_change_nothing(
    metric: Any, seed: int, count: int, classes: int
) -> None:
    logits, labels = samples(count, classes, seed)
    value = metric(logits, labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": metric is confidence_auroc}
    torch.testing.assert_close(metric(logits[order], labels[order]), value, **close)
    torch.testing.assert_close(metric(logits.log_softmax(1), labels), value, **close)
    if value.isnan():
        assert metric is confidence_auroc
        assert accuracy(logits, labels) in (0, 1)
        return
    assert value >= -1e-12
    assert metric is nll or value <= (2 if metric is brier else 1) + 1e-12


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(metric: Any, dtype: torch.dtype) -> None:
    logits, labels = samples(dtype=dtype)
    value = metric(logits, labels.int())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), metric(logits.double(), labels), rtol=1e-5, atol=1e-6)
    assert metric(logits.double(), labels).dtype == torch.float64


@pytest.mark.parametrize("metric", METRICS)
def test_domains_are_measured_alone(metric: Any) -> None:
    logits, labels = samples(240)
    domains = torch.arange(240) % 3 * 5
    values = by_domain(metric, logits, labels, domains)
    assert list(values) == [0, 5, 10]
    for domain, value in values.items():
        inside = [n for n in range(240) if int(domains[n]) == domain]
        assert value == pytest.approx(float(metric(logits[inside], labels[inside])))
    pick = min if HIGHER_IS_BETTER[metric] else max
    worst = worst_domain(metric, logits, labels, domains, higher_is_better=HIGHER_IS_BETTER[metric])
    assert worst[1] == pick(values.values())
    assert values[worst[0]] == worst[1]


def test_among_equal_domains_the_first_is_the_worst_and_nan_is_worse() -> None:
    logits, labels, domains = torch.zeros(4, 2), torch.zeros(4).long(), torch.tensor([3, 1, 2, 1])
    for better in (True, False):
        assert worst_domain(accuracy, logits, labels, domains, higher_is_better=better) == (1, 1.0)

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.tensor(math.nan if len(labels) == 1 else 0.5)

    for better in (True, False):
        domain, value = worst_domain(broken, logits, labels, domains, higher_is_better=better)
        assert domain == 2
        assert math.isnan(value)


NAN, INF = math.nan, math.inf
MEANINGLESS = [
    (torch.zeros(0, 3), [], "expected at least one sample and one class, got logits of shape (0, 3)"),
    (torch.zeros(2, 3), [0, 3], "labels must lie in 0 to 2, as there are 3 logits, got 0 to 3"),
    (torch.zeros(2, 3), [-1, 0], "got -1 to 0"),
    (torch.tensor([[0.0, 1.0], [NAN, 1.0]]), [0, 0], "the largest of sample 1 is nan; so it is for 1"),
    (torch.tensor([[INF, 1.0]]), [0], "the largest of sample 0 is inf"),
    (torch.tensor([[-INF, -INF]]), [0], "the largest of sample 0 is -inf"),
]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("logits", "classes", "message"), MEANINGLESS)
def test_inputs_without_a_meaning_are_errors(metric: Any, logits: Any, classes: Any, message: str) -> None:
    labels = torch.tensor(classes, dtype=torch.int64)
    with pytest.raises(InputError, match=re.escape(message)):
        metric(logits, labels)
    with pytest.raises(InputError, match=re.escape(message)):
        by_domain(metric, logits, labels, labels)


@pytest.mark.parametrize("name", [metric.__name__ for metric in METRICS])
def test_shapes_and_dtypes_are_checked_in_production_too(name: str) -> None:
    metric = getattr(unchecked(), name)
    with pytest.raises(InputError, match=r"got \(4, 3\) and \(4, 1\)"):
        metric(torch.zeros(4, 3), torch.zeros(4, 1).long())
    with pytest.raises(InputError, match=r"got \(2, 4, 3\) and \(2,\)"):
        metric(torch.zeros(2, 4, 3), torch.zeros(2).long())
    with pytest.raises(InputError, match=r"got torch.int64 and torch.int64"):
        metric(torch.zeros(4, 3).long(), torch.zeros(4).long())
    with pytest.raises(InputError, match=r"got torch.float32 and torch.float32"):
        metric(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(InputError, match=r"domains must have shape \(4,\), got \(3,\)"):
        unchecked().by_domain(metric, torch.zeros(4, 3), torch.zeros(4).long(), torch.zeros(3).long())


# Bins of equal mass.


def by_midrank(p: np.ndarray, hits: np.ndarray, bins: int) -> float:
    """The definition in loops: a bin from the midrank, then the gap of means of each bin."""
    groups: dict[int, list[int]] = {}
    for n, value in enumerate(p):
        midrank = np.mean([rank for rank, other in enumerate(np.sort(p), 1) if other == value])
        groups.setdefault(math.floor(bins * (midrank - 0.5) / len(p)), []).append(n)
    return sum(len(g) / len(p) * abs(hits[g].mean() - p[g].mean()) for g in groups.values())


@pytest.mark.parametrize(("count", "bins"), [(90, 15), (91, 4), (7, 15), (64, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_adaptive_bins_are_those_of_midranks(count: int, bins: int, tied: bool) -> None:
    logits, labels = samples(count, 4, seed=count)
    if tied:
        logits = logits.round()
    p = logits.softmax(1)
    confidence, predicted = p.max(1)
    hits = (predicted == labels).double().numpy()
    # One rounding for equal rows in another order of classes: ties are ties for both.
    expected = by_midrank(confidence.numpy(), hits, bins)
    assert float(adaptive_ece(logits, labels, bins=bins)) == pytest.approx(expected, rel=1e-12)
    for threshold in (0.0, 0.05, 0.4):
        total = 0.0
        for k in range(4):
            above = p[:, k] > threshold
            if above.any():
                truth = (labels[above] == k).double().numpy()
                total += by_midrank(p[above, k].numpy(), truth, bins)
        found = tace(logits, labels, bins=bins, threshold=threshold)
        assert float(found) == pytest.approx(total / 4, rel=1e-12)


def test_without_ties_the_masses_are_equal_up_to_one() -> None:
    for count, bins in [(30, 15), (100, 7), (5, 9)]:
        p = torch.linspace(0.5, 1, count, dtype=torch.float64)
        place = bins * mirepoix.metrics._twice_the_middle(p, p) // (2 * count)
        sizes = torch.bincount(place, minlength=bins)
        assert len(sizes) == bins
        assert int(sizes.max() - sizes.min()) <= 1
        assert place.tolist() == sorted(place.tolist())


def test_with_one_bin_adaptive_and_equal_widths_are_the_same() -> None:
    logits, labels = samples()
    torch.testing.assert_close(adaptive_ece(logits, labels, bins=1), ece(logits, labels, bins=1))


def test_a_confident_model_is_judged_by_more_than_one_bin() -> None:
    # All confidences in the last of 15 bins; the less confident half is always wrong.
    p = torch.tensor([0.95] * 50 + [0.99] * 50, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], 1).log()
    labels = torch.tensor([1] * 3 + [0] * 47 + [0] * 50)
    assert float(ece(logits, labels)) == pytest.approx(0)
    assert float(adaptive_ece(logits, labels)) == pytest.approx(0.01)


def test_calibrated_by_construction_all_errors_of_calibration_vanish() -> None:
    random = np.random.default_rng(1)
    logits = torch.as_tensor(2 * random.normal(size=(30000, 4)))
    cumulated = logits.softmax(1).cumsum(1).numpy()
    labels = torch.as_tensor((cumulated < random.random((30000, 1))).sum(1).clip(max=3))
    # In each of 15 bins of 2,000 the standard error is at most 0.011, and the mean of its size 0.009.
    for metric in (ece, adaptive_ece, tace):
        assert float(metric(logits, labels)) < 0.015
        assert float(metric(3 * logits, labels)) > 0.04


def test_domains_of_logits_with_a_gradient_are_plain_numbers() -> None:
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    expected = by_domain(nll, logits, labels, labels)
    assert by_domain(nll, logits.requires_grad_(), labels, labels) == expected


def test_classes_below_the_threshold_count_nothing() -> None:
    logits = torch.tensor([[0.98, 0.015, 0.005]], dtype=torch.float64).repeat(2, 1).log()
    labels = torch.tensor([0, 2])
    assert float(tace(logits, labels)) == pytest.approx((0.48 + 0.015) / 3)
    assert float(tace(logits, labels, threshold=0.0)) == pytest.approx((0.48 + 0.015 + 0.495) / 3)
    assert float(tace(logits, labels, threshold=0.99)) == 0
    # A probability at the threshold does not exceed it.
    assert float(tace(torch.zeros(2, 4), torch.tensor([0, 1]), threshold=0.25)) == 0


# Confidence and correctness.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [False, True])
def test_two_libraries_agree_on_the_auroc_of_confidence(seed: int, tied: bool) -> None:
    logits, labels = samples(seed=seed)
    if tied:
        # Doubt is a sum whose order of classes rounds: equal rows up to the largest are ties for everyone.
        logits = torch.zeros(200, 7, dtype=torch.float64)
        logits[:, 2] = torch.arange(200) % 5
        labels = torch.where(torch.arange(200) % 3 > 0, labels, 2)
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).long()
    found = float(confidence_auroc(logits, labels))
    assert found == pytest.approx(roc_auc_score(right, confidence), rel=1e-12)
    assert found == pytest.approx(float(reference.binary_auroc(confidence, right)), abs=1e-6)
    pairs = [(a > b) + 0.5 * (a == b) for a in confidence[right == 1] for b in confidence[right == 0]]
    assert found == pytest.approx(float(sum(pairs)) / len(pairs), rel=1e-12)


def test_all_right_or_all_wrong_has_no_auroc() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert confidence_auroc(logits, torch.tensor([0, 0])).isnan()
    assert confidence_auroc(logits, torch.tensor([1, 1])).isnan()
    assert confidence_auroc(logits, torch.tensor([0, 1])) == 1
    assert confidence_auroc(logits, torch.tensor([1, 0])) == 0
    assert confidence_auroc(torch.zeros(4, 3), torch.tensor([0, 1, 0, 2])) == 0.5


def test_confidences_that_round_to_one_still_have_an_order() -> None:
    logits = torch.tensor([[40.0, 0.0], [30.0, 0.0], [50.0, 0.0]])
    assert logits.softmax(1).max(1).values.tolist() == [1, 1, 1]
    assert confidence_auroc(logits, torch.tensor([0, 1, 0])) == 1
    assert confidence_auroc(logits, torch.tensor([1, 0, 0])) == 0.5


def test_the_brier_score_of_a_class_is_the_sum_divided_by_classes() -> None:
    logits, labels = samples()
    p = logits.softmax(1)
    expected = torch.nn.functional.mse_loss(p, torch.nn.functional.one_hot(labels, 7).double())
    torch.testing.assert_close(brier(logits, labels, per_class=True), expected)
    torch.testing.assert_close(brier(logits, labels), 7 * expected)


def test_options_are_checked() -> None:
    logits, labels = samples(4)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        top_k_accuracy(logits, labels, k=0)
    for binned in (ece, adaptive_ece, tace):
        with pytest.raises(InputError, match="bins must be at least 1, got 0"):
            binned(logits, labels, bins=0)
    for threshold in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="threshold must be at least 0 and below 1"):
            tace(logits, labels, threshold=threshold)
