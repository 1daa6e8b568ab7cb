"""Histograms of members that are right and of votes: a loop over samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import _votes
from mirepoix.diversity._votes import right_histogram, vote_histogram
from mirepoix.types import InputError


@given(
    members=st.integers(2, 6),
    samples=st.integers(1, 30),
    classes=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_a_loop_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(classes, (members, samples), generator=generator)
    columns = predicted.T.tolist()
    right = [0] * (members + 1)
    votes = [0] * (members + 1)
    for column in columns:
        right[column.count(0)] += 1
        for k in range(classes):
            votes[column.count(k)] += 1
    assert right_histogram(predicted == 0) == right
    assert vote_histogram(predicted, classes) == votes
    assert vote_histogram(predicted.to(torch.int8), classes) == votes


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = torch.randint(7, (4, 100), generator=torch.Generator().manual_seed(0))
    whole = vote_histogram(predicted, 7)
    monkeypatch.setattr(_votes, "BLOCK", 25)
    assert vote_histogram(predicted, 7) == whole


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="expected classes from 0 to 1, as there are 2, got 0 to 2"):
        vote_histogram(torch.tensor([[0, 1], [2, 1]]), 2)
    with pytest.raises(InputError, match="got -1 to 1"):
        vote_histogram(torch.tensor([[0, 1], [-1, 1]]), 2)
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 2"):
        vote_histogram(torch.tensor([[0, 1]]), 2)
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 2 and 0"):
        right_histogram(torch.ones(2, 0, dtype=torch.bool))
