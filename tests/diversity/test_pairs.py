"""Counts of pairs: a double loop over pairs and samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import PairCounts, mean_over_pairs, pair_counts
from mirepoix.types import InputError


def tables(correct: torch.Tensor) -> dict[tuple[int, int], dict[tuple[bool, bool], int]]:
    rows = correct.tolist()
    counts = {}
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            table = {(x, y): 0 for x in (True, False) for y in (True, False)}
            for x, y in zip(a, b, strict=True):
                table[x, y] += 1
            counts[i, j] = table
    return counts


@given(members=st.integers(2, 6), samples=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_a_double_loop_agrees(members: int, samples: int, seed: int) -> None:
    correct = torch.rand(members, samples, generator=torch.Generator().manual_seed(seed)) < 0.6
    counts = pair_counts(correct)
    assert isinstance(counts, PairCounts)
    for (i, j), table in tables(correct).items():
        assert int(counts.both_right[i, j]) == table[True, True]
        assert int(counts.only_first[i, j]) == table[True, False]
        assert int(counts.only_second[i, j]) == table[False, True]
        assert int(counts.both_wrong[i, j]) == table[False, False]
    total = counts.both_right + counts.only_first + counts.only_second + counts.both_wrong
    assert (total == samples).all()
    assert counts.both_right.dtype == torch.int64


def test_counts_are_exact_beyond_half_precision() -> None:
    correct = torch.ones(2, 100_003, dtype=torch.bool)
    correct[1, 0] = False
    counts = pair_counts(correct)
    assert counts.both_right.tolist() == [[100_003, 100_002], [100_002, 100_002]]
    assert counts.only_first.tolist() == [[0, 1], [0, 0]]


def test_the_mean_is_over_pairs_of_different_members() -> None:
    matrix = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 6.0], [2.0, 6.0, 9.0]])
    assert mean_over_pairs(matrix) == 3
    matrix[0, 1] = torch.inf
    assert mean_over_pairs(matrix) == torch.inf
    matrix[0, 2] = torch.nan
    assert mean_over_pairs(matrix).isnan()
    with pytest.raises(InputError, match="a mean over pairs needs two members, got 1"):
        mean_over_pairs(torch.zeros(1, 1))


def test_too_little_is_an_error() -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 4"):
        pair_counts(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="got 2 and 0"):
        pair_counts(torch.ones(2, 0, dtype=torch.bool))
