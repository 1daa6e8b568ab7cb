"""Generalised diversity: the chance of two failures by a loop over pairs, and its corners."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._generalised_diversity import generalised_diversity
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 6),
    "samples": st.integers(1, 30),
    "seed": st.integers(0, 2**31),
    "accuracy": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
}


def draw(members: int, samples: int, seed: int, accuracy: float) -> torch.Tensor:
    return torch.rand(members, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([[1, 1, 0, 1], [1, 0, 0, 1]], 1 - (1 / 4) / (3 / 8)),
        ([[1, 1, 0, 0], [1, 1, 0, 0]], 0),
        ([[1, 1, 1, 0], [1, 0, 1, 1]], 1),
        ([[0, 0], [0, 0]], 0),
        ([[1, 1], [1, 1]], math.nan),
        ([[0, 1], [0, 1], [1, 1]], 1 - (2 / 6 / 2) / (2 / 3 / 2)),
    ],
)
def test_by_hand(correct: list[list[int]], expected: float) -> None:
    assert float(generalised_diversity(torch.tensor(correct) == 1)) == pytest.approx(expected, nan_ok=True)


@given(**drawn)
def test_a_loop_over_ordered_pairs_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    one = two = 0
    for column in correct.T.tolist():
        for i in range(members):
            one += not column[i]
            two += sum(not column[i] and not column[j] for j in range(members) if j != i)
    expected = 1 - two / (members - 1) / one if one else math.nan
    assert float(generalised_diversity(correct)) == pytest.approx(expected, nan_ok=True, abs=1e-6)


@given(**drawn)
def test_members_and_samples_have_no_order(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    got, expected = generalised_diversity(shuffled), generalised_diversity(correct)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_one_member_is_an_error() -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        generalised_diversity(torch.ones(1, 3, dtype=torch.bool))
