"""Kullback-Leibler: a double loop in float64, logits of minus infinity, and members that are nearly equal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.diversity import _blocks, mean_over_pairs
from mirepoix.diversity._kullback_leibler import kullback_leibler, kullback_leibler_matrix
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 12),
    "classes": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
    "scale": st.sampled_from([0.01, 1.0, 30.0]),
    "holes": st.sampled_from([0.0, 0.1]),
}


def draw(members: int, samples: int, classes: int, seed: int, scale: float, holes: float = 0) -> torch.Tensor:
    """Logits, some of them minus infinity, though never all of a sample."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    gone = torch.rand(members, samples, classes, generator=generator) < holes
    gone[:, :, 0] = False
    return logits.masked_fill(gone, -torch.inf)


def divergence(a: list[float], b: list[float]) -> float:
    """KL of a from b, by its definition, from log-probabilities."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        if x == -math.inf:
            continue
        total += math.exp(x) * (x - y) if y > -math.inf else math.inf
    return total


def by_loops(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.double().log_softmax(-1).tolist()
    matrix = [
        [
            sum(divergence(x, y) + divergence(y, x) for x, y in zip(a, b, strict=True)) / (2 * len(a))
            for b in rows
        ]
        for a in rows
    ]
    return torch.tensor(matrix, dtype=torch.float64)


@given(**drawn)
def test_a_double_loop_agrees(**shape: Any) -> None:
    logits = draw(**shape)
    expected = by_loops(logits)
    torch.testing.assert_close(kullback_leibler_matrix(logits), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kullback_leibler(logits), mean_over_pairs(expected), rtol=1e-10, atol=1e-12)


@given(**drawn)
def test_members_are_symmetric_samples_have_no_order_and_logits_no_zero(**shape: Any) -> None:
    logits = draw(**shape)
    matrix = kullback_leibler_matrix(logits)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0)
    order = torch.randperm(logits.shape[1], generator=torch.Generator().manual_seed(shape["seed"]))
    shifted = logits.flip(0)[:, order] + torch.randn(len(logits), logits.shape[1], 1, dtype=torch.float64)
    torch.testing.assert_close(kullback_leibler_matrix(shifted).flip(0, 1), matrix, rtol=1e-9, atol=1e-12)
    assert (matrix.diagonal() == 0).all()


def test_by_hand() -> None:
    logits = torch.tensor([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]]]).log()
    assert float(kullback_leibler(logits)) == pytest.approx(math.log(3) / 4)


def test_zero_times_log_zero_is_zero_and_one_sided_zeros_are_infinite() -> None:
    hole = -torch.inf
    logits = torch.tensor([[[0.0, 1.0, hole]], [[1.0, 0.0, hole]], [[0.0, 0.0, 0.0]]])
    matrix = kullback_leibler_matrix(logits)
    p = 1 / (1 + math.e)
    assert float(matrix[0, 1]) == pytest.approx(1 - 2 * p)
    assert matrix[0, 2] == matrix[2, 1] == torch.inf
    assert kullback_leibler(logits) == torch.inf


def test_a_probability_too_small_for_its_dtype_is_not_zero() -> None:
    logits = torch.tensor([[[0.0, -200.0]], [[0.0, -torch.inf]], [[0.0, -300.0]]])
    assert logits.softmax(-1)[0, 0, 1] == 0
    matrix = kullback_leibler_matrix(logits)
    assert matrix[0, 1] == torch.inf
    assert float(matrix[0, 2]) == 0


def test_nearly_equal_members_keep_their_digits_in_single_precision() -> None:
    """Without taking the mean of the members away, hardly a digit of 1e-6 would be left."""
    base = 3 * torch.randn(1, 500, 20, generator=torch.Generator().manual_seed(0))
    logits = base + 2e-3 * torch.randn(4, 500, 20, generator=torch.Generator().manual_seed(1))
    expected = by_loops(logits)
    assert 1e-7 < float(expected[0, 1]) < 1e-5
    torch.testing.assert_close(kullback_leibler_matrix(logits).double(), expected, rtol=1e-3, atol=0)


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(3, 50, 4, 0, 1.0, 0.01)
    whole = kullback_leibler_matrix(logits)
    monkeypatch.setitem(_blocks.NUMBERS, "cpu", 7 * 3 * 4)
    torch.testing.assert_close(kullback_leibler_matrix(logits), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    logits = draw(3, 20, 5, 0, 3.0).to(dtype)
    got = kullback_leibler_matrix(logits)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_loops(logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", [kullback_leibler, kullback_leibler_matrix])
def test_errors_say_what_is_wrong(measure: Any) -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        measure(torch.zeros(1, 3, 2))
    with pytest.raises(InputError, match="got 2 and 0"):
        measure(torch.zeros(2, 0, 2))
    with pytest.raises(InputError, match="expected logits of at least one class"):
        measure(torch.zeros(2, 3, 0))
    for bad in (torch.nan, torch.inf, -torch.inf):
        logits = torch.zeros(2, 3, 2)
        logits[1, 2] = bad
        with pytest.raises(
            InputError, match=f"the largest of member 1 for sample 2 is {bad}. Did the training"
        ):
            measure(logits)
