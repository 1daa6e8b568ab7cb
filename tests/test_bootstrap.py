"""Intervals by drawing again, against a library and by their coverage."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.types import InputError


def test_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap(lambda drawn: values[drawn].mean(), 80, resamples=20_000, level=0.9)[0]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    # The quantile of 20,000 draws is known to about 1.5 % of the standard error.
    error = values.std() / 80**0.5
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * error)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * error)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        values = random.normal(size=50)
        interval = bootstrap(
            lambda drawn, values=values: values[drawn].mean(), 50, resamples=200, level=0.8, seed=trial
        )[0]
        held += interval.low <= 0 <= interval.high
    assert 0.70 < held / 300 < 0.88  # 0.8, and the error of 300 trials is 0.023


def test_several_numbers_come_from_the_same_draws() -> None:
    values = np.random.default_rng(3).normal(size=(2, 30))
    both = bootstrap(lambda drawn: values[:, drawn].mean(1), 30, seed=5)
    for row, interval in zip(values, both, strict=True):
        alone = bootstrap(lambda drawn, row=row: row[drawn].mean(), 30, seed=5)[0]
        assert interval.value == pytest.approx(alone.value, rel=1e-12)
        assert (interval.low, interval.high) == pytest.approx((alone.low, alone.high), rel=1e-12)


def test_groups_are_drawn_apart() -> None:
    random = np.random.default_rng(4)
    a, b = random.normal(size=40), random.normal(3, 2, size=90)
    seen = []

    def difference(i: np.ndarray, j: np.ndarray) -> float:
        seen.append((len(i), len(j)))
        return float(b[j].mean() - a[i].mean())

    interval = bootstrap(difference, [40, 90], resamples=4000)[0]
    assert set(seen) == {(40, 90)}
    error = (a.var() / 40 + b.var() / 90) ** 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_one_unit_has_no_interval() -> None:
    interval = bootstrap(lambda drawn: float(len(drawn)), 1)[0]
    assert interval.value == 1
    assert np.isnan(interval.low)
    assert not interval.excludes_zero


def test_a_number_that_is_often_not_finite_has_no_interval() -> None:
    statistic = lambda drawn: 1.0 if set(drawn) == {0, 1} else np.nan  # noqa: E731
    assert np.isnan(bootstrap(statistic, 2)[0].low)


def test_a_count_of_numpy_is_a_count() -> None:
    values = np.arange(20.0)
    statistic = lambda drawn: values[drawn].mean()  # noqa: E731
    assert bootstrap(statistic, np.int64(20)) == bootstrap(statistic, 20)


def test_zero_is_excluded_on_one_side_only() -> None:
    assert Interval(1, 0.5, 2).excludes_zero
    assert Interval(-1, -2, -0.5).excludes_zero
    assert not Interval(0, -1, 1).excludes_zero


@pytest.mark.parametrize(
    "options",
    [
        {"units": 0},
        {"units": []},
        {"units": [3, 0]},
        {"units": 3, "level": 1.0},
        {"units": 3, "resamples": 1},
    ],
)
def test_bad_input_is_refused(options: dict[str, Any]) -> None:
    units = options.pop("units")
    with pytest.raises(InputError, match="bootstrap: expected"):
        bootstrap(lambda drawn: 0.0, units, **options)
