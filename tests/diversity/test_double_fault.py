"""Double fault: hand-made tables, a double loop, and an independent library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deslib.util import diversity as deslib
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import mean_over_pairs
from mirepoix.diversity._double_fault import double_fault, double_fault_matrix
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "seed": st.integers(0, 2**31),
    "accuracy": st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
}


def draw(members: int, samples: int, seed: int, accuracy: float) -> torch.Tensor:
    return torch.rand(members, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


def test_by_hand() -> None:
    correct = torch.tensor(
        [[True, False, False, True], [False, False, False, True], [True, True, True, True]]
    )
    assert double_fault_matrix(correct).tolist() == [[0.5, 0.5, 0], [0.5, 0.75, 0], [0, 0, 0]]
    assert float(double_fault(correct)) == pytest.approx(0.5 / 3)


@given(**drawn)
def test_a_double_loop_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy)
    rows = correct.tolist()
    expected = torch.tensor(
        [[sum(not x and not y for x, y in zip(a, b, strict=True)) / samples for b in rows] for a in rows]
    )
    torch.testing.assert_close(double_fault_matrix(correct), expected)
    assert float(double_fault(correct)) == pytest.approx(float(mean_over_pairs(expected)))


@given(**drawn)
def test_deslib_agrees(members: int, samples: int, seed: int, accuracy: float) -> None:
    correct = draw(members, samples, seed, accuracy).long().numpy()
    y = torch.ones(samples).numpy()
    got = double_fault(torch.from_numpy(correct[:2]) == 1)
    assert float(got) == pytest.approx(deslib.double_fault(y, correct[0], correct[1]))


@given(**drawn)
def test_members_are_symmetric_and_samples_have_no_order(
    members: int, samples: int, seed: int, accuracy: float
) -> None:
    correct = draw(members, samples, seed, accuracy)
    shuffled = correct.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    matrix = double_fault_matrix(correct)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(double_fault_matrix(shuffled).flip(0, 1), matrix)
    torch.testing.assert_close(matrix.diagonal(), 1 - correct.float().mean(1))


@pytest.mark.parametrize("measure", [double_fault, double_fault_matrix])
def test_one_member_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        measure(torch.ones(1, 3, dtype=torch.bool))
