"""Correlation of errors: numpy's correlation, an independent library, and members without one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from deslib.util import diversity as deslib
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import q_statistic_matrix
from mirepoix.diversity._error_correlation import error_correlation, error_correlation_matrix
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "seed": st.integers(0, 2**31),
    "accuracy": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
}


def draw(members: int, samples: int, seed: int, accuracy: float) -> torch.Tensor:
    return torch.rand(members, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


def pair(n11: int, n10: int, n01: int, n00: int) -> torch.Tensor:
    """Two members with this table."""
    first = [True] * (n11 + n10) + [False] * (n01 + n00)
    second = [True] * n11 + [False] * n10 + [True] * n01 + [False] * n00
    return torch.tensor([first, second])


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((4, 2, 1, 3), (12 - 2) / math.sqrt(6 * 4 * 5 * 5)),
        ((4, 2, 2, 1), 0),  # independent
        ((4, 0, 0, 3), 1),  # copies
        ((0, 3, 2, 0), -1),  # exactly one is right
        ((4, 0, 0, 0), math.nan),  # never err
        ((0, 0, 0, 3), math.nan),  # always err
        ((4, 2, 0, 0), math.nan),  # the first never errs
        ((0, 2, 0, 1), math.nan),  # the second always errs
    ],
)
def test_by_hand(table: Any, expected: float) -> None:
    assert float(error_correlation(pair(*table))) == pytest.approx(expected, nan_ok=True, abs=1e-7)


@given(**drawn)
def test_numpy_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = np.corrcoef(correct.double().numpy())
    got = error_correlation_matrix(correct)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)
    mean = expected[np.triu_indices(members, 1)].mean()
    assert float(error_correlation(correct)) == pytest.approx(mean, nan_ok=True, abs=1e-6)


@given(**drawn)
def test_deslib_agrees_where_it_does_not_divide_by_zero(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    got = float(error_correlation(correct[:2]))
    if not math.isnan(got):
        a, b = correct[:2].long().numpy()
        expected = deslib.correlation_coefficient(torch.ones(samples).numpy(), a, b)
        assert got == pytest.approx(float(expected), abs=1e-6)


@given(**drawn)
def test_it_is_symmetric_and_between_zero_and_the_q_statistic(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    matrix = error_correlation_matrix(correct)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0, equal_nan=True)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    got = error_correlation_matrix(shuffled).flip(0, 1)
    torch.testing.assert_close(got, matrix, rtol=0, atol=0, equal_nan=True)
    q = q_statistic_matrix(correct)
    known = matrix.isfinite()
    assert (q[known].sign() == matrix[known].sign()).all()
    assert (matrix[known].abs() <= q[known].abs() + 1e-6).all()


def test_large_counts_do_not_overflow() -> None:
    correct = torch.arange(400_000).remainder(4)
    correct = torch.stack([correct < 2, correct.remainder(2) == 0, correct < 1])
    expected = [0, 1 / math.sqrt(3), 1 / math.sqrt(3)]
    matrix = error_correlation_matrix(correct)
    assert [float(matrix[i, j]) for i, j in ((0, 1), (0, 2), (1, 2))] == pytest.approx(expected)


@pytest.mark.parametrize("measure", [error_correlation, error_correlation_matrix])
def test_one_member_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        measure(torch.ones(1, 3, dtype=torch.bool))
