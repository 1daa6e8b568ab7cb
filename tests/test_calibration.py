"""Calibration: other minimisers as a second opinion, laws of scaling, and what has no temperature."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from mirepoix.calibration import Calibrated, Temperature, calibrated, fit_temperature, scale
from mirepoix.ensembles import average_logits, average_probabilities
from mirepoix.metrics import accuracy, adaptive_ece, brier, ece, nll
from mirepoix.seeds import stream
from mirepoix.types import InputError


def honest(
    count: int = 4000, classes: int = 5, seed: int = 0, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the probabilities themselves, whose logits are then multiplied by a factor."""
    random = np.random.default_rng(seed)
    z = torch.as_tensor(2 * random.normal(size=(count, classes)))
    p = z.softmax(1).numpy()
    labels = (p.cumsum(1) < random.random((count, 1))).sum(1).clip(max=classes - 1)
    return factor * z, torch.as_tensor(labels)


def loss(s: float, logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(s * logits.double(), labels.long()))


@pytest.mark.parametrize("factor", [0.02, 0.5, 1.0, 3.0, 40.0])
def test_scipy_and_lbfgs_find_the_same_minimum(factor: float) -> None:
    logits, labels = honest(600, factor=factor)
    found = fit_temperature(logits, labels)
    best = minimize_scalar(
        lambda t: loss(math.exp(-t), logits, labels),
        bounds=(-6.9, 6.9),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found.value == pytest.approx(math.exp(best.x), rel=1e-4)
    assert found.nll_after <= best.fun + 1e-12
    assert found.nll_after == pytest.approx(loss(1 / found.value, logits, labels))
    assert found.nll_before == pytest.approx(loss(1, logits, labels))
    assert not found.at_bound

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits * (-t).exp(), labels)
        value.backward()
        return value

    optimizer.step(closure)
    assert found.value == pytest.approx(float(t.detach().exp()), rel=1e-4)


def test_by_hand() -> None:
    # Confidence 0.9 and right three times of four: the scaled confidence is 3/4.
    p = torch.tensor([[0.9, 0.1]], dtype=torch.float64).repeat(4, 1)
    found = fit_temperature(p.log(), torch.tensor([0, 1, 0, 0]))
    assert found.value == pytest.approx(math.log(9) / math.log(3), rel=1e-12)
    assert found.nll_after == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert found.nll_before == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)


def test_three_times_larger_logits_have_three_times_the_temperature() -> None:
    logits, labels = honest()
    one, three = fit_temperature(logits, labels), fit_temperature(3 * logits, labels)
    assert three.value == pytest.approx(3 * one.value, rel=1e-9)
    assert three.nll_after == pytest.approx(one.nll_after, rel=1e-12)
    # Fisher's information of s on 4,000 samples is above 2,000 here: a standard error below 0.025.
    assert one.value == pytest.approx(1, abs=0.1)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5), st.floats(0.01, 100))
def test_the_loss_never_rises_on_the_fitting_half(seed: int, count: int, classes: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    logits = torch.as_tensor(factor * random.normal(size=(count, classes)))
    labels = torch.as_tensor(random.integers(classes, size=count))
    found = fit_temperature(logits, labels)
    assert found.nll_after <= found.nll_before
    assert found.nll_before == pytest.approx(float(nll(logits, labels)))
    assert float(nll(scale(logits, found), labels)) <= float(nll(logits, labels)) + 1e-6
    for other in (0.5, 0.9, 1.1, 2.0):
        if 1e-3 <= found.value * other <= 1e3:
            assert found.nll_after <= loss(1 / (found.value * other), logits, labels) + 1e-9
    assert torch.equal(scale(logits, found).argmax(1), logits.argmax(1)) or found.at_bound


def test_labels_that_the_logits_separate_end_at_the_lower_bound() -> None:
    found = fit_temperature(torch.tensor([[0.1, 0.0], [0.0, 0.2]]), torch.tensor([0, 1]))
    assert (found.value, found.at_bound) == (pytest.approx(1e-3), True)
    assert found.nll_after < 1e-6 < found.nll_before


def test_logits_that_point_away_end_at_the_upper_bound() -> None:
    found = fit_temperature(torch.tensor([[5.0, 0.0], [0.0, 5.0]]), torch.tensor([1, 0]))
    assert (found.value, found.at_bound) == (pytest.approx(1e3), True)
    assert found.nll_after == pytest.approx(math.log(2), abs=0.003)


@pytest.mark.parametrize(
    ("logits", "label", "value"),
    [
        (torch.zeros(2, 3), 1, math.log(3)),
        (torch.tensor([[0.0, -math.inf]]), 1, math.inf),
        (torch.tensor([[0.0, -math.inf]]), 0, 0.0),
        (torch.tensor([[0.0, -2000.0]]), 0, 0.0),
        (torch.zeros(2, 1), 0, 0.0),
    ],
)
def test_where_no_temperature_is_better_it_stays_one(logits: Any, label: int, value: float) -> None:
    found = fit_temperature(logits, torch.full((len(logits),), label))
    assert (found.value, found.at_bound) == (1.0, False)
    assert found.nll_before == found.nll_after == pytest.approx(value)


def test_classes_of_probability_zero_are_as_if_they_were_not_there() -> None:
    logits, labels = honest(200, 3, factor=2)
    wider = torch.cat([logits, torch.full((200, 2), -math.inf)], 1)
    assert fit_temperature(wider, labels).value == pytest.approx(
        fit_temperature(logits, labels).value, rel=1e-9
    )


def test_a_shift_of_logits_and_another_order_change_nothing() -> None:
    logits, labels = honest(300, factor=3)
    found = fit_temperature(logits, labels).value
    assert fit_temperature(logits + 1e3, labels).value == pytest.approx(found, rel=1e-8)
    assert fit_temperature(logits.flip(0), labels.flip(0)).value == pytest.approx(found, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    logits, labels = honest(100)
    narrow = logits.to(dtype)
    assert fit_temperature(narrow, labels.int()) == fit_temperature(narrow.double(), labels)
    assert scale(narrow, 2.0).dtype == torch.float32
    assert torch.equal(scale(narrow, 2.0), narrow.float() / 2)
    assert scale(logits, Temperature(4.0, False, 1.0, 1.0)).dtype == torch.float64


def test_an_ensemble_is_combined_before_it_is_scaled() -> None:
    random = torch.Generator().manual_seed(0)
    clean, labels = honest(500)
    members = 2 * (clean + torch.randn(3, 500, 5, generator=random, dtype=torch.float64))
    for combine in (average_logits, average_probabilities):
        whole = combine(members)
        found = fit_temperature(whole, labels)
        assert found.nll_after < found.nll_before
        torch.testing.assert_close(nll(scale(whole, found), labels).item(), found.nll_after)
    # Of logits the order is the same thing, of probabilities it is not.
    t = 2.5
    torch.testing.assert_close(scale(average_logits(members), t), average_logits(members / t))
    assert not torch.allclose(
        scale(average_probabilities(members), t).softmax(1), average_probabilities(members / t).softmax(1)
    )


# The protocol of halves.


@pytest.mark.parametrize(("count", "splits", "seed"), [(101, 1, 0), (60, 3, 5)])
def test_each_half_is_measured_with_the_temperature_of_the_other(count: int, splits: int, seed: int) -> None:
    logits, labels = honest(count, factor=3)
    rows = []
    for split in range(splits):
        order = stream("calibrated", seed, split).permutation(count)
        first, second = order[: count // 2], order[count // 2 :]
        assert 0 <= len(second) - len(first) <= 1
        for fit, use in ((first, second), (second, first)):
            t = fit_temperature(logits[fit], labels[fit]).value
            z, y = logits[use] / t, labels[use]
            rows.append([t, *(float(metric(z, y)) for metric in (nll, ece, adaptive_ece, brier))])
    found = calibrated(logits, labels, splits=splits, seed=seed)
    expected = torch.tensor(rows, dtype=torch.float64).mean(0)
    assert [found.temperature, found.nll, found.ece, found.adaptive_ece, found.brier] == pytest.approx(
        expected.tolist(), rel=1e-12
    )
    assert found.accuracy == float(accuracy(logits, labels))
    assert not found.at_bound


def test_what_was_three_times_too_loud_becomes_calibrated() -> None:
    logits, labels = honest(20000, factor=3)
    loud, found = float(ece(logits, labels)), calibrated(logits, labels)
    quiet = calibrated(logits / 3, labels)
    assert loud > 0.1
    # Fifteen bins of 667 samples: an error of about 0.015 in each by chance alone.
    assert found.ece < 0.02
    assert found.adaptive_ece < 0.02
    assert found.temperature == pytest.approx(3, abs=0.15)
    assert found.nll == pytest.approx(float(nll(logits / 3, labels)), rel=0.01)
    assert found.nll < float(nll(logits, labels))
    for field in ("nll", "ece", "adaptive_ece", "brier", "accuracy"):
        assert getattr(found, field) == pytest.approx(getattr(quiet, field), rel=1e-6), field


def test_the_seed_decides_and_inputs_are_untouched() -> None:
    logits, labels = honest(80, factor=2)
    before = logits.clone()
    assert calibrated(logits, labels, seed=1) == calibrated(logits, labels, seed=1)
    assert calibrated(logits, labels, seed=1).nll != calibrated(logits, labels, seed=2).nll
    assert torch.equal(logits, before)


def test_a_bound_is_told_whichever_half_has_it() -> None:
    # Right but for one sample, which lies in either half: the other half is separated.
    logits, labels = torch.tensor([[1.0, 0.0]]).repeat(20, 1), torch.zeros(20, dtype=torch.long)
    labels[3] = 1
    assert all(calibrated(logits, labels, seed=seed).at_bound for seed in range(10))


def test_a_bound_of_one_half_is_told_and_results_are_json() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = calibrated(logits, torch.tensor([0, 0]))
    assert found.at_bound
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert list(found.to_dict()) == [field.name for field in fields(Calibrated)]
    never = calibrated(torch.tensor([[0.0, -math.inf]] * 2), torch.tensor([1, 1]))
    assert (never.nll, never.temperature) == (math.inf, 1)
    assert never.to_dict()["nll"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale(torch.zeros(2, 3), 0.0), "expected a positive number, got 0.0"),
        (lambda: scale(torch.zeros(2, 3), math.nan), "expected a positive number, got nan"),
        (lambda: scale(torch.zeros(2, 2, 3), 1.0), "Combine members first"),
        (lambda: scale(torch.zeros(2, 3).long(), 1.0), "got torch.int64 of shape (2, 3)"),
        (lambda: fit_temperature(torch.zeros(2, 3), torch.tensor([0, 3])), "labels must lie in 0 to 2"),
        (lambda: fit_temperature(torch.full((2, 3), math.nan), torch.tensor([0, 1])), "largest of sample 0"),
        (lambda: calibrated(torch.zeros(1, 3), torch.tensor([0])), "got 1 samples and splits=1"),
        (lambda: calibrated(torch.zeros(4, 3), torch.zeros(4).long(), splits=0), "splits=0"),
    ],
)
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()
