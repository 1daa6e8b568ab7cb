"""Cosines of weights: by hand and against vectors that are written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mirepoix.diversity._weight_cosine import weight_cosine, weight_cosine_by_layer, weight_cosine_matrix

NAMES = ["stem.weight", "stem.norm.weight", "stem.norm.running_mean", "fc.weight", "fc.bias", "steps"]


def members(count: int, seed: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    shapes: Any = [(3, 2, 2, 2), (3,), (3,), (4, 3), (4,)]
    shared = [5 * torch.randn(shape, generator=random) for shape in shapes]
    return [
        {
            name: mean + torch.randn(shape, generator=random)
            for name, mean, shape in zip(NAMES, shared, shapes, strict=False)
        }
        | {"steps": torch.tensor(i)}
        for i in range(count)
    ]


def flat(theta: dict[str, Tensor], only: str = "") -> list[float]:
    """Parameters in one vector: neither statistics nor integers."""
    kept = [name for name in theta if name.startswith(only) and "running" not in name and name != "steps"]
    return [x for name in kept for x in theta[name].double().flatten().tolist()]


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


@given(count=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_one_long_vector_agrees(count: int, seed: int) -> None:
    start, *thetas = members(count + 1, seed)
    matrix = weight_cosine_matrix(thetas)
    tasks = weight_cosine_matrix(thetas, relative_to=start)
    layers = weight_cosine_by_layer(thetas, relative_to=start)
    assert list(layers) == ["stem", "stem.norm", "fc"]
    stage = weight_cosine_matrix(thetas, names=lambda name: name.startswith("fc."))
    origin = flat(start)
    for i, a in enumerate(thetas):
        for j, b in enumerate(thetas):
            assert float(matrix[i, j]) == pytest.approx(cosine(flat(a), flat(b)), rel=1e-12)
            expected = cosine(minus(flat(a), origin), minus(flat(b), origin))
            assert float(tasks[i, j]) == pytest.approx(expected, rel=1e-12, abs=1e-14)
            assert float(stage[i, j]) == pytest.approx(cosine(flat(a, "fc."), flat(b, "fc.")), rel=1e-12)
            head = cosine(*(minus(flat(theta, "fc."), flat(start, "fc.")) for theta in (a, b)))
            assert float(layers["fc"][i, j]) == pytest.approx(head, rel=1e-12, abs=1e-14)
    pairs = [float(tasks[i, j]) for i in range(count) for j in range(i + 1, count)]
    assert float(weight_cosine(thetas, relative_to=start)) == pytest.approx(sum(pairs) / len(pairs))


@given(seed=st.integers(0, 2**31), factor=st.sampled_from([1e-3, 0.5, 40.0]))
def test_symmetric_in_members_and_blind_to_their_length(seed: int, factor: float) -> None:
    thetas = members(4, seed)
    matrix = weight_cosine_matrix(thetas)
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 1).all()
    assert torch.equal(matrix, weight_cosine_matrix(thetas))
    torch.testing.assert_close(weight_cosine_matrix(thetas[::-1]).flip(0, 1), matrix, rtol=1e-13, atol=0)
    longer = {name: x if name == "steps" else x.double() * factor for name, x in thetas[0].items()}
    longer_matrix = weight_cosine_matrix([longer, *thetas[1:]])
    torch.testing.assert_close(longer_matrix, matrix, rtol=1e-12, atol=0)
    opposite = {name: x if name == "steps" else -x for name, x in thetas[0].items()}
    assert weight_cosine([thetas[0], opposite]) == pytest.approx(-1, abs=1e-14)
    assert abs(float(weight_cosine([thetas[0], thetas[0]])) - 1) < 1e-14


def test_by_hand_from_the_origin_and_from_the_start() -> None:
    start = {"w": torch.tensor([10.0, 10.0])}
    a, b, c = ({"w": torch.tensor(w)} for w in ([11.0, 10.0], [10.0, 11.0], [9.0, 10.0]))
    assert weight_cosine_matrix([a, b, c], relative_to=start).tolist() == [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    assert float(weight_cosine([a, b])) == pytest.approx(220 / 221)


def test_weights_without_length_are_nan_and_touch_no_other_pair() -> None:
    a, b, zero = ({"w": torch.tensor(w)} for w in ([1.0, 0.0], [3.0, 4.0], [0.0, 0.0]))
    matrix = weight_cosine_matrix([a, zero, b, {"w": torch.tensor([math.nan, 1.0])}])
    assert matrix[0, 2] == pytest.approx(0.6)
    assert matrix[0, 0] == 1
    assert matrix[[1, 3]].isnan().all()
    assert matrix[:, [1, 3]].isnan().all()
    assert weight_cosine([a, b], relative_to=a).isnan()  # one that did not move
    assert weight_cosine([a, zero, b]).isnan()


def test_names_ask_for_statistics_one_by_one() -> None:
    thetas = members(2, 0)
    got = float(weight_cosine(thetas, names=["stem.norm.running_mean"]))
    a, b = (theta["stem.norm.running_mean"].double().tolist() for theta in thetas)
    assert got == pytest.approx(cosine(a, b))
