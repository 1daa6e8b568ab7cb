"""RTD-Lite: Kruskal over all edges, the barcode by its definition, and the gradient."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mirepoix.landscape._rtd import rtd
from mirepoix.landscape._rtd_lite import rtd_lite, rtd_lite_barcode, rtd_lite_loss
from mirepoix.types import InputError

Edge = tuple[int, int]


def cloud(objects: int, features: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(objects, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(x: Tensor) -> Tensor:
    return (x[:, None] - x[None]).square().sum(-1).sqrt()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two clouds of the same objects: random, or on a grid with copies and equal distances."""
    objects, on_grid = draw(st.integers(3, 12)), draw(st.booleans())
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=2, max_size=2, unique=True))
    widths = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    p, q = (cloud(objects, width, seed) for width, seed in zip(widths, seeds, strict=True))
    return (p.round(), q.round()) if on_grid else (p, q)


def merged(group: list[int], edge: Edge) -> list[int]:
    return [group[edge[0]] if g == group[edge[1]] else g for g in group]


def tree(d: Tensor) -> list[Edge]:
    """By Kruskal, over all edges."""
    group, chosen = list(range(len(d))), []
    for edge in sorted(combinations(range(len(d)), 2), key=lambda pair: float(d[pair])):
        if group[edge[0]] != group[edge[1]]:
            chosen.append(edge)
            group = merged(group, edge)
    return chosen


def weight(d: Tensor) -> float:
    return sum(float(d[edge]) for edge in tree(d))


def barcode(d_p: Tensor, d_q: Tensor) -> list[tuple[float, float]]:
    """By the definition: a copy of the clusters for each edge of the tree of the minimum."""
    least, bars = torch.minimum(d_p, d_q), []
    group = list(range(len(d_p)))
    for edge in tree(least):
        copy, death = group, None
        for candidate in tree(d_p):
            copy = merged(copy, candidate)
            if copy[edge[0]] == copy[edge[1]]:
                death = float(d_p[candidate])
                break
        assert death is not None
        assert death >= float(least[edge])
        if death > float(least[edge]):
            bars.append((float(least[edge]), death))
        group = merged(group, edge)
    return bars


@given(both=pairs())
def test_it_is_half_the_trees_minus_the_tree_of_the_minimum(both: tuple[Tensor, Tensor]) -> None:
    p, q = both
    d_p, d_q = distances(p), distances(q)
    of_p, of_q, of_both = weight(d_p), weight(d_q), weight(torch.minimum(d_p, d_q))
    result = rtd_lite(p, q, normalisation=1.0)
    assert result.p_to_q == pytest.approx(of_p - of_both, abs=1e-9)
    assert result.q_to_p == pytest.approx(of_q - of_both, abs=1e-9)
    assert result.mean == pytest.approx((of_p + of_q) / 2 - of_both, abs=1e-9)
    assert rtd_lite_loss(p, q, normalisation=1.0).item() == pytest.approx(result.mean, abs=1e-9)
    swapped = rtd_lite(q, p, normalisation=1.0)
    assert (swapped.mean, swapped.p_to_q, swapped.q_to_p) == (result.mean, result.q_to_p, result.p_to_q)


@given(both=pairs())
def test_the_barcode_is_the_definition_and_sums_to_the_direction(both: tuple[Tensor, Tensor]) -> None:
    d_p, d_q = distances(both[0]), distances(both[1])
    bars = rtd_lite_barcode(d_p, d_q)
    direction = weight(d_p) - weight(torch.minimum(d_p, d_q))
    assert bars.diff().sum().item() == pytest.approx(direction, abs=1e-9)
    assert (bars[:, 1] > bars[:, 0]).all()
    assert bars[:, 0].tolist() == sorted(bars[:, 0].tolist())
    if (both[0] != both[0].round()).any():  # among equal edges the definition leaves a choice
        np.testing.assert_allclose(bars, np.reshape(barcode(d_p, d_q), (-1, 2)), rtol=1e-12)


def test_a_barcode_by_hand() -> None:
    """Two clusters of q, far apart in p; the second edge finds the first one taken."""
    d_p = distances(torch.tensor([[0.0], [4.0], [1.0], [5.5]]))
    d_q = distances(torch.tensor([[0.0], [0.5], [9.0], [10.0]]))
    # the tree of the minimum: 0-1 of 0.5 (q), 0-2 of 1 (p), 2-3 of 1 (q); that of p: 0-2 1, 1-2 3, 1-3 1.5
    assert rtd_lite_barcode(d_p, d_q).tolist() == [[0.5, 3], [1, 1.5]]


def test_copies_of_a_point_are_connected_at_zero() -> None:
    p = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    q = torch.tensor([[0.0], [0.0], [3.0], [3.0]])
    result = rtd_lite(p, q, normalisation=1.0)
    assert (result.p_to_q, result.q_to_p) == (0, 2)


def test_it_sees_clusters_and_no_loops() -> None:
    """The corners of a square, and their tour cut open: the same tree, but one loop less."""
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    line = torch.tensor([[0.0], [1.0], [3.0], [2.0]])
    assert rtd_lite(square, line, normalisation=1.0).mean == 0
    assert rtd(square, line, normalisation=1.0).mean > 0.2


def test_it_ignores_isometries_and_scale() -> None:
    p, q = cloud(30, 4, 0), cloud(30, 4, 1)
    turn, _ = torch.linalg.qr(cloud(4, 4, 2))
    value = rtd_lite(p, q).mean
    assert value > 0.1
    assert rtd_lite(7 * p @ turn + 3, 0.01 * q).mean == pytest.approx(value, rel=1e-9)
    assert rtd_lite(p, 5 * p @ turn).mean == pytest.approx(0, abs=1e-9)
    d_p, d_q = (distances(x) / np.quantile(distances(x), 0.9) for x in (p, q))
    assert value == pytest.approx((weight(d_p) + weight(d_q)) / 2 - weight(torch.minimum(d_p, d_q)), rel=1e-9)


def test_subsets_are_those_of_rtd() -> None:
    p, q = cloud(40, seed=0), cloud(40, 1, seed=1)
    options: dict[str, Any] = {"subsets": 5, "subset_size": 3, "seed": 2, "normalisation": 1.0}
    lite, whole = rtd_lite(p, q, **options), rtd(p, q, **options)
    assert lite.values == pytest.approx(whole.values, rel=1e-9)  # three points have no loop of their own
    assert len(set(lite.values)) == 5
    assert rtd_lite(p, q, **options) == lite


@pytest.mark.parametrize("normalisation", [1.0, "dimension", "quantile"])
def test_the_gradient_is_that_of_finite_differences(normalisation: Any) -> None:
    p, q = cloud(12, 3, 0).requires_grad_(), cloud(12, 4, 1).requires_grad_()

    def loss(p: Tensor, q: Tensor) -> Tensor:
        return rtd_lite_loss(p, q, normalisation=normalisation, detach_normalisation=False)

    assert torch.autograd.gradcheck(loss, (p, q))


def test_the_gradient_takes_the_normalisation_for_a_constant() -> None:
    p, q = cloud(12, 3, 0), cloud(12, 3, 1).requires_grad_()
    constant = np.quantile(distances(q.detach()), 0.9) / np.quantile(distances(p), 0.9)
    found = torch.autograd.grad(rtd_lite_loss(p, q), q)[0]
    fixed = float(np.quantile(distances(p), 0.9))
    scaled = (q.detach() / constant).requires_grad_()
    expected = torch.autograd.grad(rtd_lite_loss(p, scaled, normalisation=fixed), scaled)[0] / constant
    torch.testing.assert_close(found, expected)


def test_equal_clouds_and_copies_have_no_gradient() -> None:
    p = cloud(8).repeat(2, 1)
    q = p.clone().requires_grad_()
    loss = rtd_lite_loss(p, q)
    loss.backward()
    assert q.grad is not None
    assert loss.item() == 0
    assert not q.grad.any()
    apart = (p + cloud(8, seed=1).repeat(2, 1)).requires_grad_()
    rtd_lite_loss(p, apart).backward()
    assert apart.grad is not None
    assert apart.grad.isfinite().all()
    assert apart.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    p, q = cloud(9, 4, 0).to(dtype), cloud(9, 4, 1).to(dtype).requires_grad_()
    loss = rtd_lite_loss(p, q)
    loss.backward()
    assert q.grad is not None
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert q.grad.dtype == dtype
    assert q.grad.any()
    assert loss.item() == pytest.approx(rtd_lite(p, q).mean, rel=1e-5)


def test_minimising_the_loss_lowers_rtd_too() -> None:
    p, q = cloud(40, 6, 0), cloud(40, 6, 1).requires_grad_()
    before = rtd(p, q).mean
    optimizer = torch.optim.SGD([q], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        rtd_lite_loss(p, q).backward()
        optimizer.step()
    assert rtd(p, q).mean < 0.75 * before


def test_two_thousand_points() -> None:
    p, q = cloud(2048, 16, 0), cloud(2048, 16, 1)
    result = rtd_lite(p, q)
    assert result.points == 2048
    assert result.mean > 1


def test_errors_of_distances() -> None:
    with pytest.raises(InputError, match="rtd_lite_barcode: d_p must be symmetric"):
        rtd_lite_barcode(distances(cloud(4)).triu(), distances(cloud(4)))
