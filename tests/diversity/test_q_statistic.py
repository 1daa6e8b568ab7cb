"""Q-statistic: hand-made tables with their corners, and a double loop."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import q_diversity, q_statistic, q_statistic_matrix
from mirepoix.types import InputError


def pair(n11: int, n10: int, n01: int, n00: int) -> torch.Tensor:
    """Two members with this table."""
    first = [True] * (n11 + n10) + [False] * (n01 + n00)
    second = [True] * n11 + [False] * n10 + [True] * n01 + [False] * n00
    return torch.tensor([first, second])


def by_loops(correct: torch.Tensor, haldane: bool) -> float:
    values = []
    for a, b in combinations(correct.tolist(), 2):
        table = {(x, y): 0.0 for x in (True, False) for y in (True, False)}
        for x, y in zip(a, b, strict=True):
            table[x, y] += 1

        def terms(extra: float, table: dict[tuple[bool, bool], float] = table) -> tuple[float, float]:
            n = {key: value + extra for key, value in table.items()}
            return n[True, True] * n[False, False], n[True, False] * n[False, True]

        same, apart = terms(0)
        if same + apart == 0 and haldane:
            same, apart = (1, 0) if a == b else terms(0.5)
        values.append((same - apart) / (same + apart) if same + apart else math.nan)
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
    ("table", "nan", "haldane"),
    [
        ((4, 2, 1, 3), (12 - 2) / (12 + 2), (12 - 2) / (12 + 2)),
        ((4, 2, 2, 1), 0, 0),  # independent
        ((4, 0, 0, 3), 1, 1),  # copies
        ((4, 0, 2, 3), 1, 1),  # the second is right wherever the first is
        ((4, 2, 1, 0), -1, -1),  # never fail together
        ((0, 2, 1, 0), -1, -1),
        ((4, 0, 0, 0), math.nan, 1),  # never err: copies
        ((4, 2, 0, 0), math.nan, (4.5 * 0.5 - 2.5 * 0.5) / (4.5 * 0.5 + 2.5 * 0.5)),  # the first never errs
        ((0, 0, 0, 3), math.nan, 1),  # always err: copies
        ((0, 0, 2, 3), math.nan, (0.5 * 3.5 - 0.5 * 2.5) / (0.5 * 3.5 + 0.5 * 2.5)),  # the first always errs
    ],
)
def test_by_hand(table: Any, nan: float, haldane: float) -> None:
    correct = pair(*table)
    assert float(q_statistic(correct)) == pytest.approx(nan, nan_ok=True)
    assert float(q_statistic(correct, zero_denominator="nan")) == pytest.approx(nan, nan_ok=True)
    assert float(q_statistic(correct, zero_denominator="haldane")) == pytest.approx(haldane)
    assert float(q_diversity(correct)) == pytest.approx(1 - nan, nan_ok=True)
    assert float(q_diversity(correct, zero_denominator="haldane")) == pytest.approx(1 - haldane)


@given(**drawn)
def test_a_double_loop_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    for option in ("nan", "haldane"):
        expected = by_loops(correct, option == "haldane")
        got = float(q_statistic(correct, zero_denominator=option))
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


@given(**drawn)
def test_members_are_symmetric_and_samples_have_no_order(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    for option in ("nan", "haldane"):
        matrix = q_statistic_matrix(correct, zero_denominator=option)
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0, equal_nan=True)
        assert not (matrix.abs() > 1).any()
        got, expected = (q_statistic(x, zero_denominator=option) for x in (shuffled, correct))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_member_meets_itself_as_one_unless_it_is_always_right_or_always_wrong() -> None:
    correct = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    diagonal = q_statistic_matrix(correct).diagonal().tolist()
    assert diagonal == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert q_statistic_matrix(correct, zero_denominator="haldane").diagonal().tolist() == [1, 1, 1]


def test_large_counts_do_not_overflow() -> None:
    correct = torch.arange(400_000).remainder(4)
    correct = torch.stack([correct < 2, correct.remainder(2) == 0])
    assert q_statistic(correct) == 0


@pytest.mark.parametrize("measure", [q_statistic, q_statistic_matrix, q_diversity])
def test_one_member_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        measure(torch.ones(1, 3, dtype=torch.bool))
