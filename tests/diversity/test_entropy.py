"""Entropy diversity: a loop over samples, and both ends of the range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._entropy import entropy_of_correctness, vote_entropy

drawn = {
    "members": st.integers(2, 6),
    "samples": st.integers(1, 30),
    "classes": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
}


def draw(members: int, samples: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (members, samples), generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    predicted = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 2]])
    shares = math.log(3) + (math.log(3) / 3 + 2 / 3 * math.log(3 / 2))
    assert float(vote_entropy(predicted, 3)) == pytest.approx(shares / 3)
    correct = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    assert float(entropy_of_correctness(correct)) == pytest.approx(1 / 3)  # one of three: as even as it gets
    four = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    assert float(entropy_of_correctness(four)) == pytest.approx((1 / 2 + 2 / 2) / 2)


@given(**drawn)
def test_a_loop_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    votes = right = 0.0
    for column in predicted.T.tolist():
        shares = [column.count(k) / members for k in range(classes)]
        votes -= sum(v * math.log(v) for v in shares if v)
        hits = column.count(0)
        right += min(hits, members - hits) / (members - math.ceil(members / 2))
    assert float(vote_entropy(predicted, classes)) == pytest.approx(votes / samples, abs=1e-6)
    assert float(entropy_of_correctness(predicted == 0)) == pytest.approx(right / samples, abs=1e-6)


@given(**drawn)
def test_members_and_samples_have_no_order(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    shuffled = predicted.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    assert torch.equal(vote_entropy(shuffled, classes), vote_entropy(predicted, classes))
    assert torch.equal(entropy_of_correctness(shuffled == 0), entropy_of_correctness(predicted == 0))
    assert 0 <= float(vote_entropy(predicted, classes)) <= math.log(min(members, classes)) + 1e-6
    assert 0 <= float(entropy_of_correctness(predicted == 0)) <= 1


def test_even_votes_give_the_largest_values() -> None:
    predicted = torch.arange(4)[:, None].expand(4, 3)
    assert float(vote_entropy(predicted, 9)) == pytest.approx(math.log(4))
    assert entropy_of_correctness(predicted < 2) == 1
    assert vote_entropy(torch.zeros(4, 3, dtype=torch.long), 9) == 0
