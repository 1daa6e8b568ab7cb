"""Disagreement of labels and of being right: a double loop, and an independent library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deslib.util import diversity as deslib
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import mean_over_pairs
from mirepoix.diversity._disagreement import (
    agreement,
    agreement_matrix,
    disagreement,
    disagreement_matrix,
    oracle_disagreement,
    oracle_disagreement_matrix,
)
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "classes": st.sampled_from([1, 2, 7, 300]),
    "seed": st.integers(0, 2**31),
}


def draw(members: int, samples: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (members, samples), generator=torch.Generator().manual_seed(seed))


def by_loops(rows: torch.Tensor) -> list[list[float]]:
    values = rows.tolist()
    return [[sum(x != y for x, y in zip(a, b, strict=True)) / len(a) for b in values] for a in values]


def test_by_hand() -> None:
    predicted = torch.tensor([[0, 1, 2, 2], [0, 1, 1, 0], [3, 3, 3, 3]])
    assert disagreement_matrix(predicted).tolist() == [[0, 0.5, 1], [0.5, 0, 1], [1, 1, 0]]
    assert agreement_matrix(predicted).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]
    assert float(disagreement(predicted)) == pytest.approx(2.5 / 3)
    assert float(agreement(predicted)) == pytest.approx(0.5 / 3)


def test_two_different_wrong_labels_disagree_and_are_the_same_to_the_oracle() -> None:
    predicted, labels = torch.tensor([[1, 0], [2, 0]]), torch.tensor([0, 0])
    assert disagreement(predicted) == 0.5
    assert oracle_disagreement(predicted == labels) == 0


@given(**drawn)
def test_a_double_loop_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    predicted = draw(members, samples, classes, seed)
    expected = torch.tensor(by_loops(predicted))
    torch.testing.assert_close(disagreement_matrix(predicted), expected)
    torch.testing.assert_close(agreement_matrix(predicted), 1 - expected)
    assert float(disagreement(predicted)) == pytest.approx(float(mean_over_pairs(expected)))
    assert float(agreement(predicted)) == pytest.approx(1 - float(mean_over_pairs(expected)), abs=1e-6)
    correct = predicted == predicted[0]
    expected = torch.tensor(by_loops(correct))
    torch.testing.assert_close(oracle_disagreement_matrix(correct), expected)
    assert float(oracle_disagreement(correct)) == pytest.approx(float(mean_over_pairs(expected)))


@given(**drawn)
def test_deslib_agrees(members: int, samples: int, classes: int, seed: int) -> None:
    """Its measures take labels and predictions, and are all of the oracle form, agreement too."""
    predicted = draw(members, samples, classes, seed)
    labels = draw(1, samples, classes, seed + 1)[0]
    matrix = oracle_disagreement_matrix(predicted == labels)
    y, a, b = labels.numpy(), predicted[0].numpy(), predicted[1].numpy()
    assert float(matrix[0, 1]) == pytest.approx(deslib.disagreement_measure(y, a, b))
    assert 1 - float(matrix[0, 1]) == pytest.approx(deslib.agreement_measure(y, a, b), abs=1e-6)
    if classes <= 2:  # then an error has one label, and both forms are the same
        assert float(agreement(predicted[:2])) == pytest.approx(deslib.agreement_measure(y, a, b), abs=1e-6)


@given(**drawn)
def test_members_are_symmetric_and_samples_have_no_order(
    members: int, samples: int, classes: int, seed: int
) -> None:
    predicted = draw(members, samples, classes, seed)
    shuffled = predicted.flip(0)[:, torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    matrix = disagreement_matrix(predicted)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(disagreement_matrix(shuffled).flip(0, 1), matrix)
    assert (oracle_disagreement_matrix(predicted == predicted[0]) <= matrix).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_narrow_labels_count_as_wide_ones(dtype: torch.dtype) -> None:
    predicted = draw(4, 50, 100, 0)
    assert torch.equal(disagreement_matrix(predicted.to(dtype)), disagreement_matrix(predicted))


def test_labels_that_differ_by_256_differ() -> None:
    assert disagreement(torch.tensor([[0, 255], [256, 255]])) == 0.5
    assert disagreement(torch.tensor([[-1, 255], [255, 255]])) == 0.5


@pytest.mark.parametrize("measure", [disagreement, disagreement_matrix, agreement, agreement_matrix])
def test_too_little_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        measure(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="got 2 and 0"):
        measure(torch.ones(2, 0, dtype=torch.long))


@pytest.mark.parametrize("measure", [oracle_disagreement, oracle_disagreement_matrix])
def test_one_member_is_an_error(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members"):
        measure(torch.ones(1, 3, dtype=torch.bool))
