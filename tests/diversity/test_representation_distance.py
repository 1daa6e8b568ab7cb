"""Distances of features: closed forms, every permutation, and gudhi's own matching of diagrams."""

from __future__ import annotations

import math
import sys
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirepoix.diversity._representation_distance as module
from mirepoix.diversity._representation_distance import representation_mse, sliced_wasserstein, wasserstein
from mirepoix.types import InputError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(samples: int, radius: float = 1.0) -> torch.Tensor:
    turn = torch.arange(samples, dtype=torch.float64) * (2 * math.pi / samples)
    return radius * torch.stack([turn.cos(), turn.sin()], 1)


clouds = {"samples": st.integers(1, 7), "width": st.integers(1, 5), "seed": st.integers(0, 2**31)}


# Sample by sample.


@given(**clouds)
def test_mean_squares_by_loops(samples: int, width: int, seed: int) -> None:
    x, y = normal(samples, width, seed=seed).float(), normal(samples, width, seed=seed + 1).half()
    total = sum(
        (a - b) ** 2 for p, q in zip(x.tolist(), y.tolist(), strict=True) for a, b in zip(p, q, strict=True)
    )
    assert float(representation_mse(x, y)) == pytest.approx(total / (samples * width), rel=1e-12)
    assert representation_mse(x, y) == representation_mse(y, x)
    assert representation_mse(x, x) == 0


# Clouds.


@given(**clouds)
def test_the_cheapest_of_all_permutations(samples: int, width: int, seed: int) -> None:
    x, y = normal(samples, width, seed=seed), normal(samples, width, seed=seed + 1)
    costs = [
        math.fsum(math.dist(x[a].tolist(), y[b].tolist()) ** 2 for a, b in enumerate(order))
        for order in permutations(range(samples))
    ]
    assert float(wasserstein(x, y)) == pytest.approx(math.sqrt(min(costs) / samples), rel=1e-9)


@given(samples=st.integers(1, 40), width=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_a_distance_that_no_order_of_samples_changes(samples: int, width: int, seed: int) -> None:
    x, y, z = (normal(samples, width, seed=seed + i) for i in range(3))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    for distance in (wasserstein, lambda a, b: sliced_wasserstein(a, b, directions=20)):
        xy = float(distance(x, y))
        assert float(distance(y, x)) == pytest.approx(xy, rel=1e-9)
        assert float(distance(x[order], y)) == pytest.approx(xy, rel=1e-9)
        assert float(distance(x, x[order])) == pytest.approx(0, abs=1e-12)
        assert float(distance(x, z)) <= xy + float(distance(y, z)) + 1e-9
        assert float(distance(2 * x, 2 * y)) == pytest.approx(2 * xy, rel=1e-9)
    assert torch.equal(x, before)
    assert sliced_wasserstein(x, y, directions=20) <= wasserstein(x, y) + 1e-12


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_a_shift_is_as_far_as_it_is_long(offset: float) -> None:
    x, v = normal(60, 4) + offset, torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert float(wasserstein(x, x[order] + v)) == pytest.approx(float(v.norm()), rel=1e-8)


def test_on_a_line_the_cheapest_way_is_in_sorted_order() -> None:
    x, y = normal(300, 1), 2 * normal(300, 1, seed=1) ** 3
    expected = math.sqrt(float((x.sort(0).values - y.sort(0).values).square().mean()))
    assert float(wasserstein(x, y)) == pytest.approx(expected, rel=1e-12)
    assert float(sliced_wasserstein(x, y, directions=3)) == pytest.approx(expected, rel=1e-12)


def test_slices_of_a_shift_shrink_with_the_dimension() -> None:
    # E <u, v>^2 = |v|^2 / d; over 4000 directions the relative error of the mean square is sqrt(2 / 4000).
    x, v = normal(50, 9), torch.zeros(9, dtype=torch.float64)
    v[2] = 6
    got = float(sliced_wasserstein(x, x + v, directions=4000))
    assert got**2 == pytest.approx(36 / 9, rel=4 * math.sqrt(2 / 4000))
    assert got == float(sliced_wasserstein(x, x + v, directions=4000))
    assert got != float(sliced_wasserstein(x, x + v, directions=4000, seed=1))


def test_directions_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 3), normal(50, 3, seed=1)
    whole = float(sliced_wasserstein(x, y, directions=11))
    monkeypatch.setattr(module, "_ENTRIES", 120)
    assert float(sliced_wasserstein(x, y, directions=11)) == pytest.approx(whole, rel=1e-12)


# Shapes.


def test_a_square_and_a_larger_one() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    # Three components die at 1 or at 1.2; loops live from 1 to sqrt(2), and from 1.2 to 1.2 sqrt(2).
    moved = 0.2 * math.sqrt(2)
    got = {
        degrees: float(wasserstein(x, 1.2 * x, kind="diagram", degrees=degrees))
        for degrees in [(0,), (1,), (0, 1)]
    }
    assert got[0,] == pytest.approx(3 * 0.2, rel=1e-6)
    assert got[1,] == pytest.approx(min(moved, (math.sqrt(2) - 1) * (1 + 1.2) / 2), rel=1e-6)
    assert got[0, 1] == pytest.approx(got[0,] + got[1,], rel=1e-12)


def test_a_loop_is_matched_with_none() -> None:
    ring, line = circle(12), torch.arange(12.0, dtype=torch.float64)[:, None] * 0.5
    side = 2 * math.sin(math.pi / 12)
    death = math.sqrt(3)  # of a ring of 12: the side of the triangle through every fourth
    got = float(wasserstein(ring, line, kind="diagram", degrees=(1,)))
    assert got == pytest.approx((death - side) / 2)
    components = float(wasserstein(ring, line[:5], kind="diagram", degrees=[0]))
    assert components == pytest.approx(
        4 * abs(side - 0.5) + 7 * side / 2
    )  # 11 deaths, of which 4 find another


@given(first=st.integers(2, 25), second=st.integers(1, 25), seed=st.integers(0, 2**31))
def test_gudhi_matches_diagrams_alike(first: int, second: int, seed: int) -> None:
    from gudhi import RipsComplex
    from gudhi.hera import wasserstein_distance

    x, y = normal(first, 3, seed=seed), 1.5 * normal(second, 4, seed=seed + 1)
    expected = 0.0
    trees = [RipsComplex(points=cloud.numpy()).create_simplex_tree(max_dimension=2) for cloud in (x, y)]
    for tree in trees:
        tree.compute_persistence()
    for degree in (0, 1):
        a, b = (tree.persistence_intervals_in_dimension(degree).reshape(-1, 2) for tree in trees)
        a, b = (d[np.isfinite(d).all(1)] for d in (a, b))
        expected += wasserstein_distance(a, b, order=1.0, internal_p=math.inf, delta=1e-8)
    got = float(wasserstein(x, y, kind="diagram"))
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert float(wasserstein(y, x, kind="diagram")) == pytest.approx(got, rel=1e-9)


def test_shapes_do_not_see_rotation_shift_and_width() -> None:
    x, y = circle(20), normal(15, 3)
    wide = torch.nn.functional.pad(x, (0, 5)) @ torch.linalg.qr(normal(7, 7)).Q + 9
    distance = float(wasserstein(x, y, kind="diagram"))
    assert float(wasserstein(wide, y, kind="diagram")) == pytest.approx(distance, rel=1e-9)
    assert float(wasserstein(wide.flip(0), x, kind="diagram")) == pytest.approx(0, abs=1e-6)
    one = normal(1, 3)
    assert wasserstein(one, one, kind="diagram") == 0  # one point has no class that dies


# Errors.


def test_clouds_that_have_no_distance() -> None:
    x = normal(5, 3)
    with pytest.raises(InputError, match="as many samples as each other, got 5 and 4"):
        wasserstein(x, normal(4, 3))
    with pytest.raises(InputError, match=r"features of widths 3 and 2.*kind='diagram'"):
        wasserstein(x, normal(5, 2))
    with pytest.raises(InputError, match="got 0 and 0"):
        wasserstein(x[:0], x[:0])
    with pytest.raises(InputError, match=r"expected 1 to 4 samples, got 5.*use sliced_wasserstein"):
        wasserstein(x, x, most=4)
    with pytest.raises(InputError, match="expected 1 to 2000 samples, got 0"):
        wasserstein(x, x[:0], kind="diagram")
    broken = x.clone()
    broken[1, 1] = math.nan
    for distance in (wasserstein, sliced_wasserstein, lambda a, b: wasserstein(a, b, kind="diagram")):
        with pytest.raises(InputError, match="features must be finite"):
            distance(x, broken)
    with pytest.raises(InputError, match="at least one direction, got 0"):
        sliced_wasserstein(x, x, directions=0)
    for degrees in ((), (1, 7)):
        with pytest.raises(InputError, match="degrees must be some of 0, 1 and 2"):
            wasserstein(x, x, kind="diagram", degrees=degrees)
    with pytest.raises(InputError, match=r"shape \(samples, features\), got shapes \(3,\) and \(5, 3\)"):
        module._check_features(x[0], x)  # types are checked before it is called, in the tests alone
    with pytest.raises(InputError, match="one at least, got shapes"):
        representation_mse(x[:0], x[:0])


def test_shapes_without_gudhi_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "gudhi"]:
        monkeypatch.delitem(sys.modules, name)
    nothing: Any = None
    monkeypatch.setitem(sys.modules, "gudhi", nothing)
    with pytest.raises(InputError, match=r"need gudhi.*pip install 'mirepoix\[analysis\]'"):
        wasserstein(normal(5, 2), normal(5, 2), kind="diagram")
    assert wasserstein(normal(5, 2), normal(5, 2)) == 0
