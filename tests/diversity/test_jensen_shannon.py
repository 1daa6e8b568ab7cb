"""Jensen-Shannon: scipy's distance for every pair and sample, and its bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from mirepoix.diversity import mean_over_pairs
from mirepoix.diversity._jensen_shannon import jensen_shannon, jensen_shannon_matrix
from mirepoix.diversity._mutual_information import mutual_information
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 4),
    "samples": st.integers(1, 8),
    "classes": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
    "holes": st.sampled_from([0.0, 0.2]),
}


def draw(members: int, samples: int, classes: int, seed: int, holes: float = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    gone = torch.rand(members, samples, classes, generator=generator) < holes
    gone[:, :, 0] = False
    return logits.masked_fill(gone, -torch.inf)


def by_loops(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(-1).numpy()
    # scipy returns the root, and NaN where rounding makes what is under it negative.
    value = [
        [
            sum(float(jensenshannon(x, y)) ** 2 if (x != y).any() else 0 for x, y in zip(a, b, strict=True))
            for b in p
        ]
        for a in p
    ]
    return torch.tensor(value, dtype=torch.float64) / logits.shape[1]


def test_rare_classes_keep_their_digits() -> None:
    p, q = 1e-8, 3e-8
    mean = (p + q) / 2
    expected = (p * math.log(p / mean) + q * math.log(q / mean)) / 2  # the common class adds 1e-8 of it
    logits = torch.tensor([[[1 - p, p]], [[1 - q, q]]], dtype=torch.float64).log()
    assert float(jensen_shannon(logits)) == pytest.approx(expected, rel=1e-5)


@given(**drawn)
def test_scipy_agrees(**shape: Any) -> None:
    logits = draw(**shape)
    expected = by_loops(logits)
    torch.testing.assert_close(jensen_shannon_matrix(logits), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jensen_shannon(logits), mean_over_pairs(expected), rtol=1e-9, atol=1e-12)


@given(**drawn)
def test_it_is_symmetric_bounded_and_the_mutual_information_of_two(**shape: Any) -> None:
    logits = draw(**shape)
    matrix = jensen_shannon_matrix(logits)
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 0).all()
    assert float(matrix.max()) <= math.log(2) + 1e-12
    torch.testing.assert_close(matrix[0, 1], mutual_information(logits[:2]), rtol=1e-9, atol=1e-12)
    order = torch.randperm(logits.shape[1], generator=torch.Generator().manual_seed(shape["seed"]))
    torch.testing.assert_close(
        jensen_shannon_matrix(logits.flip(0)[:, order]).flip(0, 1), matrix, rtol=1e-9, atol=1e-12
    )


def test_by_hand() -> None:
    hole = -torch.inf
    logits = torch.tensor([[[0.0, hole], [0.0, hole]], [[hole, 0.0], [0.0, hole]]])
    assert float(jensen_shannon(logits)) == pytest.approx(math.log(2) / 2)


def test_single_and_half_precision() -> None:
    logits = draw(3, 40, 10, 0)
    torch.testing.assert_close(
        jensen_shannon_matrix(logits.float()).double(), by_loops(logits), rtol=0, atol=1e-6
    )
    half = logits.half()
    got = jensen_shannon_matrix(half)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_loops(half), rtol=0, atol=1e-6)


@pytest.mark.parametrize("measure", [jensen_shannon, jensen_shannon_matrix])
def test_errors_say_what_is_wrong(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        measure(torch.zeros(1, 3, 2))
    with pytest.raises(InputError, match="the largest of member 0 for sample 0 is nan"):
        measure(torch.full((2, 3, 2), torch.nan))
