"""Ratio-error: hand-made tables with their corners, and a double loop."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import pooled_ratio_error, ratio_error, ratio_error_matrix
from mirepoix.types import InputError


def pair(n11: int, n10: int, n01: int, n00: int) -> torch.Tensor:
    """Two members with this table."""
    first = [True] * (n11 + n10) + [False] * (n01 + n00)
    second = [True] * n11 + [False] * n10 + [True] * n01 + [False] * n00
    return torch.tensor([first, second])


def by_loops(correct: torch.Tensor) -> float:
    values = []
    for a, b in combinations(correct.tolist(), 2):
        apart = sum(x != y for x, y in zip(a, b, strict=True))
        together = sum(not x and not y for x, y in zip(a, b, strict=True))
        values.append(apart / together if together else math.inf if apart else math.nan)
    return sum(values) / len(values)


drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "seed": st.integers(0, 2**31),
    "accuracy": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
}


def draw(members: int, samples: int, seed: int, accuracy: float) -> torch.Tensor:
    return torch.rand(members, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


@pytest.mark.parametrize(
    ("table", "infinite", "nan", "haldane", "mixmo"),
    [
        ((5, 2, 1, 4), 3 / 4, 3 / 4, 3 / 4, 3 / 4),
        ((5, 0, 0, 4), 0, 0, 0, 0),  # always fail together
        ((0, 3, 5, 2), 4, 4, 4, 4),
        ((5, 2, 1, 0), math.inf, math.nan, 7, 2 * 3 / 8),  # share no error
        ((0, 1, 0, 0), math.inf, math.nan, 3, 2),
        ((5, 0, 0, 0), math.nan, math.nan, 1, 0),  # never err
        ((0, 0, 0, 3), 0, 0, 0, 0),  # always err
    ],
)
def test_by_hand(table: Any, infinite: float, nan: float, haldane: float, mixmo: float) -> None:
    correct = pair(*table)
    assert float(ratio_error(correct)) == pytest.approx(infinite, nan_ok=True)
    assert float(ratio_error(correct, no_shared_error="infinite")) == pytest.approx(infinite, nan_ok=True)
    assert float(ratio_error(correct, no_shared_error="nan")) == pytest.approx(nan, nan_ok=True)
    assert float(ratio_error(correct, no_shared_error="haldane")) == pytest.approx(haldane)
    assert float(ratio_error(correct, no_shared_error="mixmo")) == pytest.approx(mixmo)
    assert float(pooled_ratio_error(correct)) == pytest.approx(infinite, nan_ok=True)


@given(**drawn)
def test_a_double_loop_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    assert float(ratio_error(correct)) == pytest.approx(by_loops(correct), rel=1e-6, nan_ok=True)


@given(**drawn)
def test_members_are_symmetric_and_samples_have_no_order(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    for option in ("infinite", "nan", "haldane", "mixmo"):
        matrix = ratio_error_matrix(correct, no_shared_error=option)
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0, equal_nan=True)
        got, expected = (ratio_error(x, no_shared_error=option) for x in (shuffled, correct))
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert not got < 0
    pooled = pooled_ratio_error(shuffled), pooled_ratio_error(correct)
    torch.testing.assert_close(*pooled, equal_nan=True)


def test_one_infinite_pair_makes_the_mean_infinite_and_pooled_counts_do_not() -> None:
    correct = torch.tensor([[True, False, False], [False, True, False], [False, True, True]])
    assert ratio_error_matrix(correct).tolist() == [[0, 2, math.inf], [2, 0, 1], [math.inf, 1, 0]]
    assert ratio_error(correct) == math.inf
    assert pooled_ratio_error(correct) == (2 + 3 + 1) / 2


def test_a_member_that_never_errs_meets_itself_as_nan() -> None:
    matrix = ratio_error_matrix(torch.tensor([[True, True], [True, False]]))
    assert math.isnan(matrix[0, 0])
    assert matrix[1, 1] == 0


@pytest.mark.parametrize("measure", [ratio_error, ratio_error_matrix, pooled_ratio_error])
def test_one_member_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        measure(torch.ones(1, 3, dtype=torch.bool))
