"""Distances of weights: by hand, against `distance`, and where sums of squares would lose every digit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mirepoix.diversity._weight_distance import (
    distance_to_average,
    weight_distance_by_layer,
    weight_distance_matrix,
    weight_mean_square_matrix,
)
from mirepoix.weights import average, distance


def members(count: int, seed: int, spread: float = 1.0) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    shapes: Any = {
        "stem.weight": (3, 2, 2, 2),
        "stem.running_var": (3,),
        "fc.weight": (4, 3),
        "fc.bias": (4,),
    }
    shared = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return [
        {name: x + spread * torch.randn(x.shape, generator=random) for name, x in shared.items()}
        for _ in range(count)
    ]


def exact(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """In fractions, up to the root."""
    square = Fraction(0)
    for name in a:
        if "running" not in name:
            for x, y in zip(a[name].flatten().tolist(), b[name].flatten().tolist(), strict=True):
                square += (Fraction(x) - Fraction(y)) ** 2
    return math.sqrt(square)


@given(count=st.integers(2, 6), seed=st.integers(0, 2**31), spread=st.sampled_from([1.0, 1e-3, 3e-7, 0.0]))
def test_distance_and_exact_fractions_agree(count: int, seed: int, spread: float) -> None:
    thetas = members(count, seed, spread)
    matrix, squares = weight_distance_matrix(thetas), weight_mean_square_matrix(thetas)
    layers = weight_distance_by_layer(thetas)
    assert list(layers) == ["stem", "fc"]
    for i, a in enumerate(thetas):
        for j, b in enumerate(thetas):
            expected = exact(a, b)
            assert float(matrix[i, j]) == pytest.approx(expected, rel=1e-9, abs=0)
            assert float(matrix[i, j]) == pytest.approx(distance(a, b), rel=1e-9, abs=0)
            assert float(squares[i, j]) == pytest.approx(expected**2 / (24 + 12 + 4), rel=1e-9, abs=0)
            head = exact(*({name: theta[name] for name in ("fc.weight", "fc.bias")} for theta in (a, b)))
            assert float(layers["fc"][i, j]) == pytest.approx(head, rel=1e-9, abs=0)
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 0).all()
    torch.testing.assert_close(weight_distance_matrix(thetas[::-1]).flip(0, 1), matrix, rtol=1e-9, atol=0)
    only = weight_distance_matrix(thetas, names=["fc.bias", "fc.weight"])
    torch.testing.assert_close(only, layers["fc"], rtol=1e-12, atol=0)


@given(count=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_distance_to_average(count: int, seed: int) -> None:
    thetas = [{name: x.double() for name, x in theta.items()} for theta in members(count, seed)]
    middle = average(thetas)
    got = distance_to_average(thetas)
    assert got.tolist() == pytest.approx([distance(theta, middle) for theta in thetas], rel=1e-9, abs=1e-12)
    if count > 1:
        matrix = weight_distance_matrix(thetas)
        assert float(got.square().mean()) == pytest.approx(float(matrix.square().mean()) / 2)


@pytest.mark.parametrize("far", [0.0, 1.0, 1e4])
def test_members_that_nearly_agree_keep_their_digits(far: float) -> None:
    # A pair that differs in the last bits of float32, near the others or far from them.
    a = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 100}
    b = {"w": torch.nextafter(a["w"], torch.full((), torch.inf))}
    others = [
        {"w": a["w"] + far * torch.randn(5000, generator=torch.Generator().manual_seed(i))} for i in (1, 2)
    ]
    for thetas, pair in (([a, b, *others], (0, 1)), ([*others, a, b], (2, 3))):
        assert float(weight_distance_matrix(thetas)[pair]) == pytest.approx(exact(a, b), rel=1e-9, abs=0)
    assert distance_to_average([a, b]).tolist() == pytest.approx([exact(a, b) / 2] * 2, rel=1e-6)


def test_float64_members_that_nearly_agree_keep_their_digits() -> None:
    a = {"w": 1 + torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    b = {"w": torch.nextafter(a["w"], torch.full((), torch.inf, dtype=torch.float64))}
    assert float(weight_distance_matrix([a, b])[0, 1]) == pytest.approx(exact(a, b), rel=1e-9, abs=0)
    assert distance_to_average([a, b]).tolist() == pytest.approx([exact(a, b) / 2] * 2, rel=1e-6)
    # Two at the same place: their mean with the third is no float64 number.
    thirds = [exact(a, b) * part for part in (1 / 3, 2 / 3, 1 / 3)]
    assert distance_to_average([a, b, a]).tolist() == pytest.approx(thirds, rel=1e-6)


def test_by_hand_without_the_statistics_of_batch_norm() -> None:
    a = {"w": torch.tensor([0.0, 3.0]), "bn.running_mean": torch.tensor([1e6])}
    b = {"w": torch.tensor([4.0, 0.0]), "bn.running_mean": torch.tensor([0.0])}
    assert weight_distance_matrix([a, b]).tolist() == [[0, 5], [5, 0]]
    assert weight_mean_square_matrix([a, b]).tolist() == [[0, 12.5], [12.5, 0]]
    assert distance_to_average([a, b]).tolist() == [2.5, 2.5]
    both = ["w", "bn.running_mean"]
    assert float(weight_distance_matrix([a, b], names=both)[0, 1]) == math.sqrt(1e12 + 25)


def test_a_member_that_is_not_finite_touches_no_other_pair() -> None:
    a, b = {"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([4.0, 0.0])}
    nan, infinite = {"w": torch.tensor([math.nan, 0.0])}, {"w": torch.tensor([math.inf, 0.0])}
    for thetas, bad, i, j in (([nan, a, b], 0, 1, 2), ([a, nan, b], 1, 0, 2)):
        matrix = weight_distance_matrix(thetas)
        assert matrix[i, j] == 5
        assert matrix[bad].isnan().all()
        assert matrix[i, i] == matrix[j, j] == 0
        assert distance_to_average(thetas).isnan().all()
    matrix = weight_distance_matrix([a, infinite, b])
    assert matrix[0, 1] == matrix[1, 2] == math.inf
    assert matrix[0, 2] == 5
    assert matrix[1, 1].isnan()


def test_nothing_but_empty_tensors_is_at_distance_zero_and_has_no_mean() -> None:
    thetas = [{"w": torch.zeros(0)}, {"w": torch.zeros(0)}]
    assert weight_distance_matrix(thetas).tolist() == [[0, 0], [0, 0]]
    assert weight_mean_square_matrix(thetas).isnan().all()
    assert distance_to_average(thetas).tolist() == [0, 0]
