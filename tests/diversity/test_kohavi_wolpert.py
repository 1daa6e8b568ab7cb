"""Kohavi-Wolpert variance: a loop over samples, and what it has to do with disagreement."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._disagreement import disagreement, oracle_disagreement
from mirepoix.diversity._kohavi_wolpert import kohavi_wolpert, label_variance

drawn = {
    "members": st.integers(2, 6),
    "samples": st.integers(1, 30),
    "classes": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
}


def draw(members: int, samples: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (members, samples), generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    correct = torch.tensor(
        [[True, True, False, True], [True, False, False, False], [True, False, False, True]]
    )
    assert float(kohavi_wolpert(correct)) == pytest.approx((0 + 2 + 0 + 2) / 9 / 4)
    predicted = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 2]])
    assert float(label_variance(predicted, 3)) == pytest.approx((1 - 3 / 9 + 0 + 1 - 5 / 9) / 2 / 3)


@given(**drawn)
def test_a_loop_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    right = label = 0.0
    for column in predicted.T.tolist():
        p = column.count(0) / members
        right += p * (1 - p)
        label += (1 - sum((column.count(k) / members) ** 2 for k in range(classes))) / 2
    assert float(kohavi_wolpert(predicted == 0)) == pytest.approx(right / samples, abs=1e-6)
    assert float(label_variance(predicted, classes)) == pytest.approx(label / samples, abs=1e-6)


@given(**drawn)
def test_they_are_disagreements_in_another_unit(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    share = (members - 1) / (2 * members)
    oracle = share * float(oracle_disagreement(predicted == 0))
    assert float(kohavi_wolpert(predicted == 0)) == pytest.approx(oracle, abs=1e-6)
    expected = share * float(disagreement(predicted))
    assert float(label_variance(predicted, classes)) == pytest.approx(expected, abs=1e-6)
    two = predicted % 2
    assert float(label_variance(two, 2)) == pytest.approx(float(kohavi_wolpert(two == 0)), abs=1e-6)


@given(**drawn)
def test_members_and_samples_have_no_order(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    shuffled = predicted.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    assert torch.equal(kohavi_wolpert(shuffled == 0), kohavi_wolpert(predicted == 0))
    assert torch.equal(label_variance(shuffled, classes), label_variance(predicted, classes))
    assert 0 <= float(kohavi_wolpert(predicted == 0)) <= 1 / 4
    assert 0 <= float(label_variance(predicted, classes)) < 1 / 2
