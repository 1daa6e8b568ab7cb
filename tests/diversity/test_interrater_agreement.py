"""Interrater agreement: kappa by a loop, its corners, and what it has to do with disagreement."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._disagreement import oracle_disagreement
from mirepoix.diversity._error_correlation import error_correlation
from mirepoix.diversity._interrater_agreement import interrater_agreement
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
        ([[1, 1, 0, 1], [1, 0, 0, 1]], 1 - 1 / (4 * 2 * 5 / 8 * 3 / 8)),
        ([[1, 1, 0, 0], [1, 1, 0, 0]], 1),
        ([[1, 1, 0, 0], [0, 0, 1, 1]], -1),  # -1 / (M - 1)
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], -1 / 2),
        ([[1, 1], [1, 1]], math.nan),
        ([[0, 0], [0, 0]], math.nan),
    ],
)
def test_by_hand(correct: list[list[int]], expected: float) -> None:
    assert float(interrater_agreement(torch.tensor(correct) == 1)) == pytest.approx(expected, nan_ok=True)


@given(**drawn)
def test_a_loop_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    p = sum(map(sum, correct.tolist())) / (members * samples)
    within = sum(sum(x) * (members - sum(x)) for x in correct.T.tolist()) / members
    expected = 1 - within / (samples * (members - 1) * p * (1 - p)) if 0 < p < 1 else math.nan
    assert float(interrater_agreement(correct)) == pytest.approx(expected, nan_ok=True, abs=1e-6)


@given(**drawn)
def test_it_is_disagreement_beside_that_of_chance(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    p = float(correct.double().mean())
    if 0 < p < 1:
        expected = 1 - float(oracle_disagreement(correct)) / (2 * p * (1 - p))
        assert float(interrater_agreement(correct)) == pytest.approx(expected, abs=1e-5)


def test_it_is_the_correlation_of_errors_of_two_members_that_are_equally_good() -> None:
    correct = torch.tensor([[1, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 1]]) == 1
    assert float(interrater_agreement(correct)) == pytest.approx(float(error_correlation(correct)))


@given(**drawn)
def test_members_and_samples_have_no_order(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    got, expected = interrater_agreement(shuffled), interrater_agreement(correct)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_one_member_is_an_error() -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        interrater_agreement(torch.ones(1, 3, dtype=torch.bool))
