"""Ensembles of k out of n: loops as a second opinion, lines that are known, and what cannot be separated."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from mirepoix.diversity import ratio_error_matrix
from mirepoix.ensembles import average_logits, average_probabilities
from mirepoix.evidence import _subsets as module
from mirepoix.evidence._subsets import ensembles_of_size
from mirepoix.metrics import accuracy
from mirepoix.types import InputError


def world(
    members: int = 7, samples: int = 120, classes: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Members of different strength that see the same labels through noise of their own."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=random)
    truth = torch.nn.functional.one_hot(labels, classes).double()
    strength = torch.linspace(1.0, 2.0, members, dtype=torch.float64)[:, None, None]
    noise = torch.randn(members, samples, classes, generator=random, dtype=torch.float64)
    return strength * truth + noise, labels


def difference(predicted: np.ndarray, labels: np.ndarray, i: int, j: int) -> float:
    worst = max(np.mean(predicted[i] != labels), np.mean(predicted[j] != labels))
    return float(np.mean(predicted[i] != predicted[j]) / worst)


@pytest.mark.parametrize("combine", [average_logits, average_probabilities])
@pytest.mark.parametrize(("k", "containing"), [(2, None), (3, None), (4, 2), (7, None), (2, 6)])
def test_subsets_are_those_of_loops(combine: Any, k: int, containing: int | None) -> None:
    logits, labels = world()
    found = ensembles_of_size(logits, labels, k, containing=containing, combine=combine, resamples=2)
    ways = [c for c in itertools.combinations(range(7), k) if containing is None or containing in c]
    assert [tuple(row) for row in found.chosen.tolist()] == ways
    assert (
        found.possible
        == len(ways)
        == math.comb(6 if containing is not None else 7, k - (containing is not None))
    )
    predicted = logits.argmax(-1).numpy()
    for row, way in enumerate(ways):
        alone = [float(accuracy(logits[i], labels)) for i in way]
        apart = [difference(predicted, labels.numpy(), i, j) for i, j in itertools.combinations(way, 2)]
        assert found.mean_accuracy[row] == pytest.approx(np.mean(alone), rel=1e-12)
        assert found.diversity[row] == pytest.approx(np.mean(apart), rel=1e-6)
        assert found.accuracy[row] == pytest.approx(float(accuracy(combine(logits[list(way)]), labels)))
    assert found.combined == combine.__name__


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    logits, labels = world(members=15, samples=30)  # 6,435 subsets: several blocks of them
    whole = ensembles_of_size(logits, labels, 7, limit=6435, resamples=2)
    monkeypatch.setattr(module, "BLOCK", block)
    again = ensembles_of_size(logits, labels, 7, limit=6435, resamples=2)
    assert np.array_equal(whole.accuracy, again.accuracy)
    for row in (0, 1023, 1024, 6434):
        own = float(accuracy(average_logits(logits[whole.chosen[row]]), labels))
        assert whole.accuracy[row] == pytest.approx(own)


def test_another_matrix_of_pairs_is_used() -> None:
    logits, labels = world()
    correct = logits.argmax(-1) == labels
    found = ensembles_of_size(logits, labels, 3, pairs=ratio_error_matrix(correct), resamples=2)
    matrix = ratio_error_matrix(correct).double().numpy()
    for way, value in zip(found.chosen, found.diversity, strict=True):
        assert value == pytest.approx(np.mean([matrix[i, j] for i, j in itertools.combinations(way, 2)]))


def test_halves_are_split_at_the_median_and_ties_are_below() -> None:
    logits, labels = world(samples=20)
    found = ensembles_of_size(logits, labels, 3, resamples=2)
    assert found.median == np.median(found.accuracy)
    assert (found.accuracy == found.median).sum() > 1
    assert np.array_equal(found.above, found.accuracy > found.median)


def test_extremes_are_the_means_of_the_worst_and_best_twentieth() -> None:
    logits, labels = world(members=9)
    found = ensembles_of_size(logits, labels, 4, resamples=2)
    count = 7  # of 126: 6.3, rounded up
    order = np.argsort(found.accuracy, kind="stable")
    for extreme, where in ((found.worst, order[:count]), (found.best, order[-count:])):
        assert extreme is not None
        assert extreme.subsets == count
        assert extreme.accuracy == pytest.approx(found.accuracy[where].mean())
        assert extreme.mean_accuracy == pytest.approx(found.mean_accuracy[where].mean())
        assert extreme.diversity == pytest.approx(found.diversity[where].mean())
        assert extreme.diversity_deviation == pytest.approx(found.diversity[where].std())
    assert found.worst is not None
    assert found.best is not None
    assert found.worst.accuracy < found.best.accuracy


def test_correlations_and_regression_are_those_of_scipy_and_numpy() -> None:
    logits, labels = world(members=8, seed=3)
    found = ensembles_of_size(logits, labels, 3, resamples=2)
    a, d, y, fit = found.mean_accuracy, found.diversity, found.accuracy, found.fit
    assert fit.pearson_accuracy == pytest.approx(pearsonr(a, y).statistic)
    assert fit.pearson_diversity == pytest.approx(pearsonr(d, y).statistic)
    assert fit.pearson_between == pytest.approx(pearsonr(a, d).statistic)
    assert fit.spearman_accuracy == pytest.approx(spearmanr(a, y).statistic)
    assert fit.spearman_diversity == pytest.approx(spearmanr(d, y).statistic)
    assert fit.spearman_between == pytest.approx(spearmanr(a, d).statistic)
    design = np.stack([np.ones_like(a), a, d], 1)
    coefficients, residuals, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert [fit.intercept, fit.accuracy_slope, fit.diversity_slope] == pytest.approx(coefficients.tolist())
    assert fit.r_squared == pytest.approx(1 - float(residuals[0]) / float(((y - y.mean()) ** 2).sum()))
    # Strength is what differs here.
    assert fit.pearson_accuracy is not None
    assert fit.pearson_accuracy > 0.7


# The line.


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (-1.0, 3.0)])
def test_a_line_that_separates_is_found_in_the_units_of_the_axes(weights: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    scaled = random.normal(size=(1500, 2))
    margin = scaled @ np.array(weights)
    scaled = scaled[np.abs(margin) > 0.2]
    margin = margin[np.abs(margin) > 0.2]
    spread, middle = np.array([0.01, 0.2]), np.array([0.86, 0.65])
    x = middle + spread * scaled
    line = module._line(x, margin > 0, 50, 0)
    assert line is not None
    assert line.separated > 0.99
    # In units: w . (x - middle) / spread = 0.
    expected = np.array([weights[0] / spread[0], weights[1] / spread[1]])
    ratio = line.accuracy_weight / line.diversity_weight
    assert ratio == pytest.approx(expected[0] / expected[1], rel=0.05)
    assert np.sign(line.accuracy_weight) == np.sign(weights[0])
    # The standardised weights do not know the units.
    assert line.standardised[0] / line.standardised[1] == pytest.approx(
        weights[0] * scaled[:, 0].std() / (weights[1] * scaled[:, 1].std()), rel=0.05
    )
    for a, d, low, high in zip(line.accuracy, line.diversity, line.low, line.high, strict=True):
        assert line.accuracy_weight * a + line.diversity_weight * d + line.intercept == pytest.approx(
            0, abs=1e-6
        )
        assert low <= d <= high
        truth = middle[1] - spread[1] * weights[0] * (a - middle[0]) / (spread[0] * weights[1])
        assert d == pytest.approx(truth, abs=0.15 * spread[1] * (1 + abs(a - middle[0]) / spread[0]))
    for k in range(2):
        assert line.standardised_low[k] <= line.standardised[k] <= line.standardised_high[k]


def test_other_units_give_the_same_line() -> None:
    logits, labels = world(members=9)
    pairs = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = pairs + pairs.T
    one = ensembles_of_size(logits, labels, 3, pairs=pairs, resamples=20)
    hundred = ensembles_of_size(logits, labels, 3, pairs=100 * pairs, resamples=20)
    assert one.line is not None
    assert hundred.line is not None
    assert hundred.line.diversity == pytest.approx([100 * value for value in one.line.diversity], rel=1e-4)
    assert hundred.line.high == pytest.approx([100 * value for value in one.line.high], rel=1e-4)
    assert hundred.line.standardised == pytest.approx(one.line.standardised, rel=1e-4)
    assert hundred.fit.r_squared == pytest.approx(one.fit.r_squared)


def test_equal_members_have_no_line_and_no_correlation() -> None:
    logits, labels = world(members=1)
    found = ensembles_of_size(logits.repeat(5, 1, 1), labels, 3)
    assert found.line is None
    assert set(vars_of(found.fit)) == {None}
    assert not found.above.any()
    assert found.worst == found.best


def vars_of(fit: module.Fit) -> list[float | None]:
    return [getattr(fit, name) for name in fit.__dataclass_fields__]


def test_members_that_never_err_are_handled() -> None:
    labels = torch.tensor([0, 1, 0])
    logits = torch.nn.functional.one_hot(labels, 2).double().repeat(4, 1, 1)
    found = ensembles_of_size(logits, labels, 2)
    assert found.accuracy.tolist() == [1.0] * 6
    assert found.diversity.tolist() == [0.0] * 6
    assert found.line is None


def test_one_subset_has_extremes_and_no_line() -> None:
    logits, labels = world(members=3)
    found = ensembles_of_size(logits, labels, 3)
    assert found.line is None
    assert found.worst is not None
    assert found.worst.accuracy == found.accuracy[0]
    assert found.fit.r_squared is None


def test_diversities_that_are_not_finite_are_left_out_and_counted() -> None:
    logits, labels = world()
    pairs = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    pairs = pairs + pairs.T
    pairs[0, 1] = pairs[1, 0] = math.inf
    pairs[2, 3] = pairs[3, 2] = math.nan
    found = ensembles_of_size(logits, labels, 3, pairs=pairs, resamples=5)
    bad = [{0, 1} <= set(row) or {2, 3} <= set(row) for row in found.chosen.tolist()]
    assert found.left_out == sum(bad) == 10
    assert np.array_equal(~np.isfinite(found.diversity), bad)
    known = ~np.array(bad)
    assert found.median == np.median(found.accuracy[known])
    assert found.fit.pearson_accuracy == pytest.approx(
        pearsonr(found.mean_accuracy[known], found.accuracy[known]).statistic
    )
    nothing = ensembles_of_size(logits, labels, 3, pairs=torch.full((7, 7), math.inf))
    assert (nothing.left_out, nothing.line, nothing.worst, nothing.best) == (35, None, None, None)
    for result in (found, nothing):
        plain = result.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain


# What there is, and what is drawn.


def test_many_subsets_are_drawn_all_different_and_by_the_seed() -> None:
    logits, labels = world(members=12, samples=10)
    first, again, other = (
        ensembles_of_size(logits, labels, 5, containing=3, limit=100, resamples=2, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.possible == 330
    assert first.to_dict() == again.to_dict()
    assert first.chosen.tolist() != other.chosen.tolist()
    rows = [tuple(row) for row in first.chosen.tolist()]
    assert len(set(rows)) == 100
    assert all(3 in row and list(row) == sorted(set(row)) for row in rows)


def test_half_precision_and_inputs_that_stay_as_they_are() -> None:
    logits, labels = world()
    before = logits.clone()
    narrow = logits.half()
    found = ensembles_of_size(narrow, labels, 3, resamples=5)
    assert found.to_dict() == ensembles_of_size(narrow.float(), labels, 3, resamples=5).to_dict()
    ensembles_of_size(logits, labels, 3, resamples=2)
    assert torch.equal(logits, before)


def test_five_of_fifteen_take_seconds() -> None:
    logits, labels = world(members=15, samples=1000, classes=10)
    begin = time.process_time()
    found = ensembles_of_size(logits.float(), labels, 5)
    assert time.process_time() - begin < 20
    assert len(found.accuracy) == 3003
    assert found.line is not None
    assert found.fit.r_squared is not None
    assert found.line.standardised_low[0] > 0  # stronger members make better ensembles here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "k: expected from 2 to 7 members of an ensemble, got 1"),
        ({"k": 8}, "got 8"),
        ({"containing": 7}, "containing: expected a member from 0 to 6, got 7"),
        ({"combine": len}, "got len"),
        ({"pairs": torch.zeros(3, 3)}, "pairs: expected shape (7, 7), got (3, 3)"),
        ({"pairs": torch.arange(49.0).view(7, 7)}, "pairs: expected a symmetric matrix"),
        ({"labels": torch.zeros(3).long()}, "got torch.float64 of shape (7, 120, 4) and (3,)"),
        ({"logits": torch.full((7, 120, 4), math.nan)}, "member 0 has others"),
        ({"limit": 0}, "expected a limit from 1"),
        ({"resamples": 1}, "resamples from 2, got 5000 and 1"),
    ],
)
def test_errors_say_what_was_expected(options: dict[str, Any], message: str) -> None:
    logits, labels = world()
    with pytest.raises(InputError, match=re.escape(message)):
        ensembles_of_size(**({"logits": logits, "labels": labels, "k": 3} | options))
