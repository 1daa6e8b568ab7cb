"""Normalised difference: hand-made corners and a double loop, with both units of error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity._normalised_difference import (
    normalise,
    normalised_difference,
    normalised_difference_matrix,
)
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "classes": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
}


def draw(members: int, samples: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randint(classes, (members + 1, samples), generator=torch.Generator().manual_seed(seed))
    return drawn[1:], drawn[0]


def by_loops(predicted: torch.Tensor, labels: torch.Tensor, relative_to: str) -> list[list[float]]:
    y, rows = labels.tolist(), predicted.tolist()

    def differ(a: list[int], b: list[int]) -> float:
        return sum(x != z for x, z in zip(a, b, strict=True)) / len(a)

    def of(a: list[int], b: list[int]) -> float:
        unit = max(differ(a, y), differ(b, y)) if relative_to == "larger" else differ(b, y)
        different = differ(a, b)
        return different / unit if unit else math.inf if different else 0.0

    return [[of(a, b) for b in rows] for a in rows]


@pytest.mark.parametrize(
    ("predicted", "larger", "second"),
    [
        ([[0, 0, 0, 1], [0, 0, 1, 0]], 2, 2),  # errors of 1/4, apart on half of the samples
        ([[0, 0, 0, 1], [0, 1, 1, 1]], 2 / 3, (2 / 3 + 2) / 2),
        ([[0, 0, 1, 1], [0, 0, 1, 1]], 0, 0),  # copies
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 0, 0),  # both never err
        ([[0, 0, 0, 0], [0, 0, 0, 1]], 1, math.inf),  # the first never errs
        ([[1, 1, 1, 1], [2, 2, 2, 2]], 1, 1),  # always wrong, and apart
    ],
)
def test_by_hand(predicted: Any, larger: float, second: float) -> None:
    x, labels = torch.tensor(predicted), torch.zeros(4, dtype=torch.long)
    assert float(normalised_difference(x, labels)) == pytest.approx(larger)
    assert float(normalised_difference(x, labels, relative_to="larger")) == pytest.approx(larger)
    assert float(normalised_difference(x, labels, relative_to="second")) == pytest.approx(second)


def test_the_second_member_is_the_column() -> None:
    predicted, labels = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]), torch.zeros(4, dtype=torch.long)
    matrix = normalised_difference_matrix(predicted, labels, relative_to="second")
    assert matrix[0].tolist() == pytest.approx([0, 2 / 3])
    assert matrix[1].tolist() == pytest.approx([2, 0])


@given(**drawn)
def test_a_double_loop_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    predicted, labels = draw(members, samples, classes, seed)
    for option in ("larger", "second"):
        expected = torch.tensor(by_loops(predicted, labels, option))
        got = normalised_difference_matrix(predicted, labels, relative_to=option)
        torch.testing.assert_close(got, expected)
        # The mean over ordered pairs; for the larger error both orders are equal.
        mean = expected.sum() / (members * (members - 1))
        assert float(normalised_difference(predicted, labels, relative_to=option)) == pytest.approx(
            float(mean)
        )


@given(**drawn)
def test_members_are_symmetric_and_samples_have_no_order(
    members: int, samples: int, classes: int, seed: int
) -> None:
    predicted, labels = draw(members, samples, classes, seed)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    for option in ("larger", "second"):
        got = normalised_difference(predicted.flip(0)[:, order], labels[order], relative_to=option)
        torch.testing.assert_close(got, normalised_difference(predicted, labels, relative_to=option))
    matrix = normalised_difference_matrix(predicted, labels)
    assert torch.equal(matrix, matrix.T)
    assert float(matrix.min()) >= 0
    assert float(matrix.max()) <= 2


@pytest.mark.parametrize("measure", [normalised_difference, normalised_difference_matrix])
def test_errors_say_what_is_wrong(measure: Any) -> None:
    labels = torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        measure(torch.zeros(1, 3, dtype=torch.long), labels)


def test_an_unknown_unit_is_an_error() -> None:
    with pytest.raises(InputError, match="relative_to: expected 'larger' or 'second', got 'first'"):
        normalise(torch.zeros(2, 2), torch.zeros(2), "first")
