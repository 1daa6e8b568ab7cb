"""Difficulty: the variance as numpy has it, and its corners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._difficulty import difficulty
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
        ([[1, 1, 0, 0], [1, 0, 0, 1]], 1 / 8),
        ([[1, 1, 1, 0], [1, 1, 1, 0]], 3 / 4 * 1 / 4),  # copies: p (1 - p)
        ([[1, 1, 0, 0], [0, 0, 1, 1]], 0),  # all equally hard
        ([[1, 0], [1, 0]], 1 / 4),
        ([[1], [0]], 0),
    ],
)
def test_by_hand(correct: list[list[int]], expected: float) -> None:
    assert float(difficulty(torch.tensor(correct) == 1)) == pytest.approx(expected)


@given(**drawn)
def test_numpy_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    expected = correct.double().numpy().mean(0).var()
    assert float(difficulty(correct)) == pytest.approx(float(expected), abs=1e-7)


@given(**drawn)
def test_members_and_samples_have_no_order(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    assert torch.equal(difficulty(shuffled), difficulty(correct))


def test_one_member_is_an_error() -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        difficulty(torch.ones(1, 3, dtype=torch.bool))
