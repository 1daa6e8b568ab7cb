"""RTD: both engines, the definition written out, the facts that hold for it, and its gradient."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mirepoix.landscape._distances import Divergence, draws
from mirepoix.landscape._persistence import Engine, h1_edges
from mirepoix.landscape._rtd import directed_rtd, rtd, rtd_loss
from mirepoix.landscape._rtd_lite import rtd_lite, rtd_lite_loss
from mirepoix.types import InputError


def cloud(objects: int, features: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(objects, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(x: Tensor) -> Tensor:
    return (x[:, None] - x[None]).square().sum(-1).sqrt()


@st.composite
def pairs(draw: st.DrawFn, most: int = 9) -> tuple[Tensor, Tensor]:
    """Two clouds of the same objects: random, or on a grid with copies and equal distances."""
    objects, on_grid = draw(st.integers(3, most)), draw(st.booleans())
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=2, max_size=2, unique=True))
    widths = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    p, q = (cloud(objects, width, seed) for width, seed in zip(widths, seeds, strict=True))
    return (p.round(), q.round()) if on_grid else (p, q)


def full_graph(d_p: Tensor, d_q: Tensor) -> np.ndarray:
    """The matrix of the definition, all edges, the first cloud first."""
    a, b = d_p.numpy(), d_q.numpy()
    matrix = np.block([[np.zeros_like(a), a], [a, np.minimum(a, b)]])
    matrix[matrix < 1e-6 * a.mean()] = 0
    return matrix


def by_definition(d_p: Tensor, d_q: Tensor, longest: int | None = None) -> float:
    matrix = full_graph(d_p, d_q)
    edges = h1_edges(matrix, "simplex_tree")
    bars = matrix[edges[:, 2], edges[:, 3]] - matrix[edges[:, 0], edges[:, 1]]
    return float(np.sort(bars)[::-1][:longest].sum())


def tree_weight(d: Tensor) -> float:
    """By Kruskal, over all edges."""
    group, total = list(range(len(d))), 0.0
    for i, j in sorted(combinations(range(len(d)), 2), key=lambda pair: float(d[pair])):
        if group[i] != group[j]:
            total += float(d[i, j])
            group = [group[i] if g == group[j] else g for g in group]
    return total


# The value


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
@given(both=pairs(), longest=st.sampled_from([None, 1, 2]))
def test_it_is_the_definition_with_each_engine(
    engine: Engine, both: tuple[Tensor, Tensor], longest: int | None
) -> None:
    """The definition keeps the edges that the code leaves out between the copies."""
    p, q = both
    d_p, d_q = distances(p), distances(q)
    there, back = by_definition(d_p, d_q, longest), by_definition(d_q, d_p, longest)
    assert float(directed_rtd(d_p, d_q, longest=longest, engine=engine)) == pytest.approx(there, abs=1e-9)
    result = rtd(p, q, normalisation=1.0, longest=longest, engine=engine)
    assert result.p_to_q == pytest.approx(there, abs=1e-9)
    assert result.q_to_p == pytest.approx(back, abs=1e-9)
    assert result.mean == pytest.approx((there + back) / 2, abs=1e-9)
    loss = rtd_loss(p, q, normalisation=1.0, longest=longest, engine=engine)
    assert loss.item() == pytest.approx((there + back) / 2, abs=1e-9)


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
def test_three_points_by_hand(engine: Engine) -> None:
    d_p = 1 - torch.eye(3)
    d_q = d_p.clone()
    d_q[0, 1] = d_q[1, 0] = 0.5
    assert directed_rtd(d_p, d_q, engine=engine) == 0.5
    assert directed_rtd(d_q, d_p, engine=engine) == 0


def test_more_points_with_each_engine() -> None:
    p, q = cloud(40, 8, 0), cloud(40, 5, 1)
    fast, slow = rtd(p, q), rtd(p, q, engine="simplex_tree")
    assert fast.mean == pytest.approx(slow.mean, rel=1e-10)
    assert fast.p_to_q != pytest.approx(fast.q_to_p, rel=1e-3)


def rank(rows: list[int]) -> int:
    """Over Z/2, each row the bits of an integer."""
    by_top: dict[int, int] = {}
    for row in rows:
        while row:
            top = row.bit_length()
            if top not in by_top:
                by_top[top] = row
                break
            row ^= by_top[top]
    return len(by_top)


def cycles(edges: list[tuple[int, int]], bit: dict[tuple[int, int], int]) -> list[int]:
    """A basis of the cycles: with each edge that closes one, the way through the forest before it."""
    way = {v: (v, 0) for edge in edges for v in edge}  # the root of its tree, and the edges from there
    basis = []
    for edge in edges:
        (root_u, to_u), (root_v, to_v) = way[edge[0]], way[edge[1]]
        loop = to_u ^ to_v ^ (1 << bit[edge])
        if root_u == root_v:
            basis.append(loop)
        else:
            way = {v: (root_u, to ^ loop) if root == root_v else (root, to) for v, (root, to) in way.items()}
    return basis


@pytest.mark.parametrize("seed", range(4))
def test_it_splits_into_trees_and_loops(seed: int) -> None:
    """RTD_1 is the difference of the trees and the integral of dim coker(H1(P) -> H1(min)), by linear algebra."""
    d_p, d_q = distances(cloud(8, 2, 2 * seed)), distances(cloud(8, 2, 2 * seed + 1))
    least = torch.minimum(d_p, d_q)
    every = list(combinations(range(8), 2))
    bit = {edge: i for i, edge in enumerate(every)}
    scales = sorted({float(d[edge]) for edge in every for d in (d_p, least)})
    loops = 0.0
    for scale, following in pairwise(scales):
        small, large = ([e for e in every if d[e] <= scale] for d in (d_p, least))
        triangles = [
            t for t in combinations(range(8), 3) if all(pair in large for pair in combinations(t, 2))
        ]
        boundaries = [sum(1 << bit[pair] for pair in combinations(t, 2)) for t in triangles]
        cokernel = len(cycles(large, bit)) - rank(cycles(small, bit) + boundaries)
        loops += cokernel * (following - scale)
    trees = tree_weight(d_p) - tree_weight(least)
    assert float(directed_rtd(d_p, d_q)) == pytest.approx(trees + loops, rel=1e-9)
    assert trees > 0.01
    assert loops > 0.01 or seed != 1  # some clouds have no loop that counts; this one does


# The facts


@given(both=pairs())
def test_a_cloud_and_itself(both: tuple[Tensor, Tensor]) -> None:
    assert rtd(both[0], both[0], normalisation=1.0).mean == 0


@given(both=pairs(), longest=st.sampled_from([None, 2]))
def test_it_is_symmetric_and_blind_to_order(both: tuple[Tensor, Tensor], longest: int | None) -> None:
    p, q = both
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    value, swapped = (rtd(*x, normalisation=1.0, longest=longest) for x in ((p, q), (q, p)))
    assert value.mean == swapped.mean
    assert (value.p_to_q, value.q_to_p) == (swapped.q_to_p, swapped.p_to_q)
    assert rtd(p[order], q[order], normalisation=1.0, longest=longest).mean == pytest.approx(
        value.mean, abs=1e-9
    )


@given(both=pairs())
def test_nothing_comes_together_in_a_cloud_that_is_farther_apart(both: tuple[Tensor, Tensor]) -> None:
    d_p, d_q = distances(both[0]), distances(both[1])
    assert directed_rtd(torch.minimum(d_p, d_q), d_p) == 0


@given(both=pairs())
def test_rtd_lite_is_a_lower_bound_in_each_direction(both: tuple[Tensor, Tensor]) -> None:
    whole, lite = (measure(*both, normalisation=1.0) for measure in (rtd, rtd_lite))
    slack = 1e-5  # distances that count as none
    assert whole.p_to_q >= lite.p_to_q - slack >= -2 * slack
    assert whole.q_to_p >= lite.q_to_p - slack >= -2 * slack


@pytest.mark.parametrize("normalisation", ["quantile", "mean", "median"])
def test_it_ignores_isometries_and_scale(normalisation: Any) -> None:
    p, q = cloud(30, 4, 0), cloud(30, 4, 1)
    turn, _ = torch.linalg.qr(cloud(4, 4, 2))
    value = rtd(p, q, normalisation=normalisation).mean
    assert value > 0.1
    assert rtd(7 * p @ turn + 3, q, normalisation=normalisation).mean == pytest.approx(value, rel=1e-9)
    assert rtd(p, 0.01 * q @ turn - 1, normalisation=normalisation).mean == pytest.approx(value, rel=1e-9)
    assert rtd(p, 0.01 * q, normalisation=1.0).mean != pytest.approx(value, rel=0.1)


def test_what_the_distances_are_divided_by() -> None:
    p, q = cloud(12, 4, 0), cloud(12, 9, 1)
    d_p, d_q = distances(p), distances(q)

    def value(of_p: Any, of_q: Any) -> float:
        a, b = d_p / of_p, d_q / of_q
        return (by_definition(a, b) + by_definition(b, a)) / 2

    constants: list[tuple[Any, Any, Any]] = [
        ("quantile", np.quantile(d_p, 0.9), np.quantile(d_q, 0.9)),
        ("median", np.median(d_p), np.median(d_q)),
        ("mean", d_p.mean(), d_q.mean()),
        ("dimension", 2, 3),
        (0.5, 0.5, 0.5),
    ]
    for normalisation, of_p, of_q in constants:
        expected = value(of_p, of_q)
        assert rtd(p, q, normalisation=normalisation).mean == pytest.approx(expected, rel=1e-9)
        loss = rtd_loss(p, q, normalisation=normalisation, longest=None)
        assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert float(rtd_loss(p, q, longest=None)) == pytest.approx(value(2, 3), rel=1e-9)  # the default


def test_the_dual_is_the_direction_from_the_maximum() -> None:
    d_p, d_q = distances(cloud(7, 2, 0)), distances(cloud(7, 2, 1))
    greater = torch.maximum(d_p, d_q)
    matrix = np.block([[np.zeros((7, 7)), greater.numpy()], [greater.numpy(), d_q.numpy()]])
    edges = h1_edges(matrix, "simplex_tree")
    expected = (matrix[edges[:, 2], edges[:, 3]] - matrix[edges[:, 0], edges[:, 1]]).sum()
    assert float(directed_rtd(greater, d_q)) == pytest.approx(expected, rel=1e-9)
    assert expected > 0


def test_fifty_bars_are_the_default_of_the_loss() -> None:
    p, q = cloud(60, 8, 0), cloud(60, 8, 1)
    losses = [float(rtd_loss(p, q, longest=longest)) for longest in (49, 50, None)]
    assert losses[0] < losses[1] < losses[2]
    assert float(rtd_loss(p, q)) == losses[1]


def test_further_axes_are_flattened() -> None:
    p, q = cloud(6, 12, 0), cloud(6, 4, 1)
    assert rtd(p.reshape(6, 3, 2, 2), q) == rtd(p, q)
    assert rtd_loss(p.reshape(6, 3, 2, 2), q) == rtd_loss(p, q)


def test_negligible_distances_count_as_none() -> None:
    """Below a millionth of the mean of the first cloud: here of 2/3, so below 6.7e-7."""
    d_p = 1 - torch.eye(3, dtype=torch.float64)
    for length, counts in ((6e-7, False), (8e-7, True)):
        d_q = d_p.clone()
        d_q[0, 1] = d_q[1, 0] = length
        d_q.requires_grad_()
        value = directed_rtd(d_p, d_q)
        value.backward()
        assert d_q.grad is not None
        assert value.item() == (1 - length if counts else 1)
        assert d_q.grad.sum() == (-1 if counts else 0)


# Subsets


def test_no_object_twice_in_a_subset() -> None:
    subsets = list(draws(12, 20, 11, 0))
    assert all(len(chosen.unique()) == 11 for chosen in subsets)
    assert len({tuple(sorted(chosen.tolist())) for chosen in subsets}) > 5


def test_all_objects_at_once_if_they_fit() -> None:
    p, q = cloud(12, seed=0), cloud(12, seed=1)
    whole = rtd(p, q)
    assert (whole.std, whole.points, len(whole.values)) == (0, 12, 1)
    assert rtd(p, q, subset_size=12, seed=5) == whole


def test_subsets_of_the_same_objects_in_both() -> None:
    p = cloud(40, seed=0)
    assert rtd(p, 2 * p, subset_size=10).mean == pytest.approx(0, abs=1e-9)
    q = cloud(40, seed=1)
    result = rtd(p, q, subsets=4, subset_size=10)
    assert result == rtd(p, q, subsets=4, subset_size=10)
    assert result != rtd(p, q, subsets=4, subset_size=10, seed=1)
    assert (result.points, len(set(result.values))) == (10, 4)
    assert result.mean == pytest.approx(np.mean(result.values))
    assert result.std == pytest.approx(np.std(result.values, ddof=1))
    assert result.mean == pytest.approx((result.p_to_q + result.q_to_p) / 2)
    one = rtd(p, q, subsets=1, subset_size=10)
    assert one.values == result.values[:1]
    assert np.isnan(one.std)


# The gradient


@pytest.mark.parametrize("engine", ["gudhi", "simplex_tree"])
@pytest.mark.parametrize("longest", [None, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_finite_differences(engine: Engine, longest: int | None, seed: int) -> None:
    p, q = cloud(10, 3, 2 * seed).requires_grad_(), cloud(10, 4, 2 * seed + 1).requires_grad_()

    def loss(p: Tensor, q: Tensor) -> Tensor:
        return rtd_loss(p, q, longest=longest, engine=engine)

    assert torch.autograd.gradcheck(loss, (p, q))


@pytest.mark.parametrize("normalisation", ["quantile", "mean", "median"])
def test_the_gradient_through_the_normalisation(normalisation: Any) -> None:
    p, q = cloud(7, 2, 3).requires_grad_(), cloud(7, 2, 4).requires_grad_()

    def loss(p: Tensor, q: Tensor) -> Tensor:
        return rtd_loss(p, q, normalisation=normalisation, detach_normalisation=False)

    assert torch.autograd.gradcheck(loss, (p, q))
    loss(p, q).backward()
    assert q.grad is not None
    radial = (q.grad * q).sum().item()  # the value does not depend on the scale
    q.grad = None
    rtd_loss(p, q, normalisation=normalisation).backward()
    assert q.grad is not None
    assert abs(radial) < 1e-9 < abs((q.grad * q).sum().item())


def test_the_gradient_of_one_direction_with_respect_to_the_distances() -> None:
    d_p, d_q = (distances(cloud(6, 2, seed)).requires_grad_() for seed in (0, 1))
    upper = torch.ones(6, 6, dtype=torch.float64).triu(1)

    def direction(a: Tensor, b: Tensor) -> Tensor:
        return directed_rtd(*((x * upper) + (x * upper).T for x in (a, b)))

    assert torch.autograd.gradcheck(direction, (d_p, d_q))


@pytest.mark.parametrize("gradient", ["exact", "transfer"])
def test_the_gradient_is_that_of_the_bars_one_by_one(gradient: Literal["exact", "transfer"]) -> None:
    """Births always where the minimum is; in transfer, deaths at the minimum move the second cloud."""
    p, q = cloud(14, 3, 5), cloud(14, 3, 6)
    d = {"p": distances(p) / 3**0.5, "q": distances(q) / 3**0.5}
    slopes = {"p": torch.zeros(14, 14), "q": torch.zeros(14, 14)}
    passed_on = 0
    for first, second in (("p", "q"), ("q", "p")):
        matrix = np.roll(full_graph(d[first], d[second]), (14, 14), (0, 1))  # the minimum first
        for *birth, u, v in h1_edges(matrix, "simplex_tree"):
            i, j = birth[0] % 14, birth[1] % 14
            assert max(birth) < 14
            assert d[second][i, j] < d[first][i, j]
            slopes[second][i, j] -= 0.5
            i, j = u % 14, v % 14
            owner = second if max(u, v) < 14 and d[second][i, j] < d[first][i, j] else first
            if gradient == "transfer" and max(u, v) < 14:
                passed_on += owner == "p"
                owner = "q"
            slopes[owner][i, j] += 0.5
    assert passed_on > 0 or gradient == "exact"
    p.requires_grad_(), q.requires_grad_()
    expected = torch.autograd.grad(
        sum((slopes[name] * torch.cdist(x, x)).sum() for name, x in (("p", p), ("q", q))) / 3**0.5, (p, q)
    )
    loss = rtd_loss(p, q, longest=None, gradient=gradient)
    assert loss.item() == pytest.approx(rtd_loss(p, q, longest=None).item(), rel=1e-12)
    for found, wanted in zip(torch.autograd.grad(loss, (p, q)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_equal_distances_do_not_borrow_each_others_gradient() -> None:
    """Both clouds have two distances of 1 and 2 each, of which one in each direction belongs to the loop."""
    p = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    q = torch.tensor([[0.0], [2.0], [3.0]], requires_grad=True)
    rtd_loss(p, q).backward()
    assert q.grad is not None
    assert p.grad is not None
    assert q.grad.flatten().tolist() == [-0.5, 1, -0.5]
    assert p.grad.flatten().tolist() == [0.5, -1, 0.5]


@pytest.mark.parametrize("gradient", ["exact", "transfer"])
def test_equal_clouds_and_copies_have_no_gradient(gradient: Literal["exact", "transfer"]) -> None:
    p = cloud(8).repeat(2, 1)
    q = p.clone().requires_grad_()
    loss = rtd_loss(p, q, gradient=gradient)
    loss.backward()
    assert q.grad is not None
    assert loss.item() == 0
    assert not q.grad.any()
    apart = (p + cloud(8, seed=1).repeat(2, 1)).requires_grad_()
    loss = rtd_loss(p, apart, gradient=gradient)
    loss.backward()
    assert apart.grad is not None
    assert loss.item() > 0
    assert apart.grad.isfinite().all()
    assert apart.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    p, q = cloud(9, 4, 0).to(dtype), cloud(9, 4, 1).to(dtype).requires_grad_()
    before = p.clone(), q.detach().clone()
    loss = rtd_loss(p, q)
    loss.backward()
    assert q.grad is not None
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert q.grad.dtype == dtype
    assert q.grad.any()
    assert loss.item() == pytest.approx(rtd_loss(p.double(), q.double()).item(), rel=1e-5)
    assert rtd(p, q) == rtd(p.double(), q.double())
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


def test_minimising_the_loss_lowers_rtd() -> None:
    p, q = cloud(48, 6, 0).float(), cloud(48, 6, 1).float().requires_grad_()
    before = rtd(p, q, normalisation="dimension").mean
    optimizer = torch.optim.SGD([q], lr=0.2)
    for _ in range(40):
        optimizer.zero_grad()
        rtd_loss(p, q).backward()
        optimizer.step()
    assert rtd(p, q, normalisation="dimension").mean < 0.6 * before


def test_a_minibatch_of_256_is_fast_enough_for_a_loss() -> None:
    p, q = cloud(256, 64, 0).float(), cloud(256, 64, 1).float().requires_grad_()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        rtd_loss(p, q).backward()
        times.append(time.perf_counter() - start)
    assert min(times) < 5  # 0.2 s on one quiet core of 2026


# Errors


@pytest.mark.parametrize("measure", [rtd, rtd_loss, rtd_lite])
def test_errors_of_clouds(measure: Any) -> None:
    p = cloud(5)
    with pytest.raises(InputError, match="got 5 rows in p and 4 in q"):
        measure(p, p[:4])
    with pytest.raises(InputError, match="at least 3 objects, got 2"):
        measure(p[:2], p[:2])
    broken = p.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(InputError, match="q is not finite for 1 of 5 objects, the first is row 3"):
        measure(p, broken)
    with pytest.raises(
        InputError, match=r"p must be floating-point features .* got torch.int64 of shape \(5, 3\)"
    ):
        measure(p.long(), p)
    with pytest.raises(InputError, match=r"of shape \(5,\)"):
        measure(p, p[:, 0])
    with pytest.raises(InputError, match="p is on cpu and q on meta"):
        measure(p, p.to("meta"))
    for wrong in ("max", 0.0, -1.0, True, None):
        with pytest.raises(InputError, match="normalisation must be 'quantile'"):
            measure(p, p, normalisation=wrong)
    copies = torch.cat([p[:1]] * 30 + [p[1:2]])
    with pytest.raises(
        InputError, match=r"the 0\.9-quantile of the distances in q is 0\.0: too many of its 31 objects"
    ):
        measure(cloud(31), copies, normalisation="quantile")


@pytest.mark.parametrize("measure", [rtd_loss, rtd_lite_loss])
@pytest.mark.parametrize("normalisation", ["quantile", "dimension"])
def test_distances_beyond_the_type_are_refused(measure: Any, normalisation: str) -> None:
    p, q = cloud(5, seed=0).float(), cloud(5, seed=1).float()
    with pytest.raises(
        InputError, match=r"distances between the objects in q are too large for torch\.float32"
    ):
        measure(p, 1e30 * q, normalisation=normalisation)


def test_errors_of_options() -> None:
    p, q = cloud(5, seed=0), cloud(5, seed=1)
    wrong: Any = "straight"
    with pytest.raises(InputError, match="gradient must be 'exact' or 'transfer', got 'straight'"):
        rtd_loss(p, q, gradient=wrong)
    with pytest.raises(InputError, match="engine must be"):
        rtd(p, q, engine=wrong)
    for measure in (rtd, rtd_loss):
        with pytest.raises(InputError, match="longest: expected at least one bar or None for all, got 0"):
            measure(p, q, longest=0)
    for sizes in ({"subsets": 0}, {"subset_size": 2}):
        with pytest.raises(InputError, match="at least one subset of at least 3 points"):
            rtd(p, q, **sizes)


def test_errors_of_distances() -> None:
    d = distances(cloud(4))
    with pytest.raises(InputError, match=r"square matrices .* got shapes \(4, 4\) and \(3, 3\)"):
        directed_rtd(d, d[:3, :3])
    with pytest.raises(InputError, match="at least 3"):
        directed_rtd(d[:2, :2], d[:2, :2])
    for broken in (-d, d + 1, d / 0):
        with pytest.raises(InputError, match="d_q must be finite, not negative, and zero on the diagonal"):
            directed_rtd(d, broken)
    with pytest.raises(InputError, match="d_p must be symmetric"):
        directed_rtd(d.triu(), d)


def test_the_result_is_plain() -> None:
    result = rtd(cloud(5, seed=0), cloud(5, seed=1))
    assert isinstance(result, Divergence)
    assert all(
        type(value) in (float, int, tuple)
        for value in (result.mean, result.std, result.points, result.values)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    p, q = cloud(32, 8, 0), cloud(32, 8, 1).requires_grad_()
    p_there, q_there = p.cuda(), q.detach().cuda().requires_grad_()
    loss = rtd_loss(p_there, q_there)
    loss.backward()
    rtd_loss(p, q).backward()
    assert loss.device.type == "cuda"
    torch.testing.assert_close(q_there.grad.cpu(), q.grad)  # type: ignore[union-attr]
    assert rtd(p_there, q_there).mean == pytest.approx(rtd(p, q).mean, rel=1e-9)
