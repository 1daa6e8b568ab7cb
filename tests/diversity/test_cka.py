"""CKA: centring matrices and double loops in float64, laws, and the numbers that made the unbiased estimate needed."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mirepoix.diversity._cka as module
from mirepoix.diversity._cka import MinibatchCKA, cka, cka_matrix, ckac
from mirepoix.types import InputError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x: np.ndarray[Any, Any], kernel: str, bandwidth: float) -> np.ndarray[Any, Any]:
    """By two loops over samples."""
    n = len(x)
    if kernel == "linear":
        return np.array([[sum(a * b) for b in x] for a in x])
    apart = np.array([[math.dist(a, b) for b in x] for a in x])
    median = np.median([apart[i, j] for i, j in combinations(range(n), 2)])
    return np.exp(-(apart**2) / (2 * (bandwidth * median) ** 2))


def hsic(k: np.ndarray[Any, Any], l: np.ndarray[Any, Any], unbiased: bool) -> float:  # noqa: E741
    n = len(k)
    if not unbiased:
        h = np.eye(n) - 1 / n
        return float(np.trace(k @ h @ l @ h))
    k, l = k * (1 - np.eye(n)), l * (1 - np.eye(n))  # noqa: E741
    one = np.ones(n)
    both = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((both - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


def by_loops(x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float, unbiased: bool) -> float:
    k, l = (gram(z.double().numpy(), kernel, bandwidth) for z in (x, y))  # noqa: E741
    return hsic(k, l, unbiased) / math.sqrt(hsic(k, k, unbiased) * hsic(l, l, unbiased))


shapes = {
    "samples": st.integers(5, 14),
    "widths": st.lists(st.integers(2, 20), min_size=2, max_size=4),
    "seed": st.integers(0, 2**31),
    "kernel": st.sampled_from(["linear", "rbf"]),
    "unbiased": st.booleans(),
}


def related(samples: int, widths: list[int], seed: int) -> list[torch.Tensor]:
    shared = normal(samples, 3, seed=seed)
    return [
        shared @ normal(3, width, seed=seed + i + 1) + normal(samples, width, seed=seed + i + 9) + 5
        for i, width in enumerate(widths)
    ]


@given(**shapes, tile=st.sampled_from([2**23, 60]))
def test_the_definition_by_loops(
    samples: int, widths: list[int], seed: int, kernel: Any, unbiased: bool, tile: int
) -> None:
    features = related(samples, widths, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)  # several tiles
        patch.setattr(module, "_ROWS", 4 if tile == 60 else 4096)
        matrix = cka_matrix(features, kernel=kernel, bandwidth=0.7, unbiased=unbiased)
    for i, j in combinations(range(len(widths)), 2):
        expected = by_loops(features[i], features[j], kernel, 0.7, unbiased)
        assert float(matrix[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert matrix.dtype == torch.float64
    assert (matrix.diagonal() == 1).all()
    pair = cka(features[0], features[1], kernel=kernel, bandwidth=0.7, unbiased=unbiased)
    assert float(pair) == pytest.approx(float(matrix[0, 1]), rel=1e-9, abs=1e-11)
    diversity = ckac(features, kernel=kernel, bandwidth=0.7, unbiased=unbiased)
    mean = np.mean([float(matrix[i, j]) for i, j in combinations(range(len(widths)), 2)])
    assert float(diversity) == pytest.approx(1 - mean, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("samples", "width"), [(60, 4), (12, 40)])
def test_products_of_features_and_gram_matrices_agree(samples: int, width: int, unbiased: bool) -> None:
    members = [module._Member(x) for x in related(samples, [width] * 3, 0)]
    features, sizes = module._from_features(members, unbiased)
    grams, others = module._from_grams(members, None, unbiased)
    torch.testing.assert_close(features.triu(), grams.triu(), rtol=1e-10, atol=0)
    torch.testing.assert_close(sizes, others, rtol=1e-10, atol=0)


@given(**shapes)
def test_rotation_shift_and_one_factor_are_not_seen(
    samples: int, widths: list[int], seed: int, kernel: Any, unbiased: bool
) -> None:
    features = related(samples, widths, seed)
    moved = []
    for i, x in enumerate(features):
        rotation = torch.linalg.qr(normal(x.shape[1], x.shape[1], seed=seed + 50 + i)).Q
        moved.append((0.01 + 3 * i) * x @ rotation + 100 * i)
    options = {"kernel": kernel, "unbiased": unbiased}
    for x, y in zip(features, moved, strict=True):
        assert float(cka(x, y, **options)) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(
        cka_matrix(moved, **options), cka_matrix(features, **options), rtol=1e-7, atol=1e-8
    )
    stretched = features[0] * torch.linspace(1, 30, widths[0], dtype=torch.float64)
    assert (
        abs(float(cka(features[0], stretched, **options)) - 1) > 1e-6
    )  # one factor, not one for each column


@given(**shapes)
def test_members_are_symmetric_and_samples_have_no_order(
    samples: int, widths: list[int], seed: int, kernel: Any, unbiased: bool
) -> None:
    features = related(samples, widths, seed)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    before = [x.clone() for x in features]
    matrix = cka_matrix(features, kernel=kernel, unbiased=unbiased)
    assert all(torch.equal(x, y) for x, y in zip(before, features, strict=True))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix, cka_matrix(features, kernel=kernel, unbiased=unbiased))
    shuffled = cka_matrix([x[order] for x in features[::-1]], kernel=kernel, unbiased=unbiased)
    torch.testing.assert_close(shuffled.flip(0, 1), matrix, rtol=1e-9, atol=1e-11)
    if not unbiased:
        assert (matrix >= 0).all()
        assert (matrix <= 1 + 1e-12).all()


def test_independent_features_look_alike_unless_the_estimate_is_unbiased() -> None:
    pairs = [(normal(400, 20, seed=2 * s), normal(400, 300, seed=2 * s + 1)) for s in range(8)]
    biased = torch.stack([cka(x, y) for x, y in pairs])
    unbiased = torch.stack([cka(x, y, unbiased=True) for x, y in pairs])
    assert float(biased.mean()) == pytest.approx(0.14, abs=0.01)
    assert abs(float(unbiased.mean())) < 4 * float(unbiased.std()) / math.sqrt(8) < 0.01
    assert unbiased.min() < 0 < unbiased.max()  # not clipped


def test_batches_agree_with_all_samples_at_once_where_biased_batches_do_not() -> None:
    base = normal(4000, 20)
    x, y = base + 0.3 * normal(4000, 20, seed=1), base + 0.6 * normal(4000, 20, seed=2)
    z = normal(4000, 30, seed=3)
    minibatch, biased = MinibatchCKA(), []
    for start in range(0, 4000, 40):
        batch = [w[start : start + 40] for w in (x, y, z)]
        minibatch.update(batch)
        biased.append(cka_matrix(batch))
    full = cka_matrix([x, y, z], unbiased=True)
    torch.testing.assert_close(minibatch.matrix(), full, rtol=0, atol=0.02)
    assert float(torch.stack(biased).mean(0)[0, 1]) > float(full[0, 1]) + 0.08
    assert minibatch.batches == 100
    assert float(minibatch.value()) == pytest.approx(
        float((full[0, 1] + full[0, 2] + full[1, 2]) / 3), abs=0.01
    )


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_minibatch_is_a_ratio_of_sums(kernel: Any) -> None:
    batches = [related(n, [3, 12], n) for n in (6, 9, 30)]
    minibatch = MinibatchCKA(kernel=kernel, bandwidth=0.8)
    sums = np.zeros(3)
    for x, y in batches:
        minibatch.update([x, y])
        k, l = (gram(z.numpy(), kernel, 0.8) for z in (x, y))  # noqa: E741
        sums += [hsic(k, l, True), hsic(k, k, True), hsic(l, l, True)]
    assert float(minibatch.value()) == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-9)
    one = MinibatchCKA(kernel=kernel, bandwidth=0.8)
    one.update(batches[0])
    expected = cka_matrix(batches[0], kernel=kernel, bandwidth=0.8, unbiased=True)
    torch.testing.assert_close(one.matrix(), expected)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_features_that_do_not_vary_are_nan_and_touch_no_other_pair(kernel: Any, unbiased: bool) -> None:
    x, y = related(10, [3, 30], 0)
    flat = torch.full((10, 3), 0.1, dtype=torch.float64)  # its mean is not 0.1
    broken = x.clone()
    broken[3, 1] = torch.nan
    matrix = cka_matrix([x, flat, broken, y], kernel=kernel, unbiased=unbiased)
    assert matrix[[1, 2]].isnan().all()
    assert matrix[0, 3] == pytest.approx(float(cka(x, y, kernel=kernel, unbiased=unbiased)), rel=1e-9)
    assert cka(x, flat, kernel=kernel, unbiased=unbiased).isnan()
    minibatch = MinibatchCKA(kernel=kernel)
    minibatch.update([x, flat])
    assert minibatch.value().isnan()


def test_more_than_half_of_all_distances_zero_leave_no_bandwidth() -> None:
    x = normal(10, 3)
    x[:9] = x[0]
    assert cka(x, normal(10, 3, seed=1), kernel="rbf").isnan()
    assert cka(x, normal(10, 3, seed=1)).isfinite()


def test_samples_that_are_all_as_far_from_each_other_have_no_unbiased_estimate() -> None:
    for corners in (torch.eye(8, dtype=torch.float64), torch.eye(8, 60, dtype=torch.float64)):
        assert cka(corners, normal(8, 3), unbiased=True).isnan()
        assert cka(corners, normal(8, 3)).isfinite()


def test_a_common_offset_does_not_cost_digits() -> None:
    x, y = related(20, [4, 5], 0)
    for unbiased in (False, True):
        exact = float(cka(x, y, unbiased=unbiased))
        assert float(cka(x + 2.0**20, y, unbiased=unbiased)) == pytest.approx(exact, rel=1e-8)
        wide = cka(x, y, kernel="rbf", bandwidth=1e4, unbiased=unbiased)
        assert float(wide) == pytest.approx(exact, rel=1e-5)  # a very wide kernel is linear


def test_one_tensor_half_precision_and_gradients_are_taken() -> None:
    features = normal(3, 12, 5).half()
    matrix = cka_matrix(features.requires_grad_())
    torch.testing.assert_close(matrix, cka_matrix(list(features.detach().double())))
    assert not matrix.requires_grad


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([normal(5, 2)], {}, "compares two members or more, got 1"),
        ([normal(5, 2), normal(6, 2)], {}, "got 5 samples in member 0 and 6 in member 1"),
        ([normal(1, 2), normal(1, 2)], {}, "CKA needs at least 2 samples, in each batch, got 1"),
        (
            [normal(3, 2), normal(3, 2)],
            {"unbiased": True},
            "unbiased estimate needs at least 4 samples.*got 3",
        ),
        ([normal(5, 2), normal(5, 2)], {"bandwidth": 0.0}, "bandwidth must be a positive part.*got 0.0"),
        ([normal(5, 2), normal(5, 2)], {"bandwidth": math.inf}, "got inf"),
    ],
)
def test_what_cannot_be_compared(features: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cka_matrix(features, **options)


def test_what_cannot_be_a_batch() -> None:
    minibatch = MinibatchCKA()
    with pytest.raises(InputError, match="no batch yet"):
        minibatch.value()
    with pytest.raises(InputError, match="at least 4 samples, in each batch, got 3"):
        minibatch.update([normal(3, 2), normal(3, 2)])
    minibatch.update([normal(4, 2), normal(4, 3)])
    with pytest.raises(InputError, match="features of 2 members, as in the batches before, got 3"):
        minibatch.update([normal(4, 2)] * 3)
    with pytest.raises(InputError, match="bandwidth"):
        MinibatchCKA(kernel="rbf", bandwidth=-1.0)
