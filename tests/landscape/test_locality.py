"""Locality and angles: by hand, by loops, and what does not change them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.landscape._locality import angles, locality
from mirepoix.types import InputError
from mirepoix.weights import average, distance, subtract

seeds = st.integers(0, 2**31)


def member(random, dtype=torch.float32):
    return {
        "a.weight": torch.from_numpy(random.normal(size=(3, 4))).to(dtype),
        "a.running_mean": torch.from_numpy(random.normal(size=3)),
        "a.running_var": torch.from_numpy(random.uniform(size=3)),
        "a.num_batches_tracked": torch.tensor(int(random.integers(100))),
        "b": torch.from_numpy(random.normal(size=5)).to(dtype),
    }


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_distances_are_those_from_the_average(seed, members, replicates):
    random = np.random.default_rng(seed)
    thetas = [[member(random, torch.float64) for _ in range(members)] for _ in range(replicates)]
    found = locality(*thetas)
    far = [[distance(theta, average(each)) for theta in each] for each in thetas]
    assert np.array(found.distances) == pytest.approx(np.array(far), abs=1e-12)
    assert found.squared == pytest.approx(np.mean([max(row) ** 2 for row in far]), abs=1e-12)
    assert found.distance == pytest.approx(np.mean(far), abs=1e-12)


def test_of_replicates_the_squares_are_averaged():
    pairs = [[{"w": np.array([-size])}, {"w": np.array([size])}] for size in (1.0, 3.0)]
    found = locality(*pairs)
    assert found.squared == (1 + 9) / 2
    assert found.distance == 2
    assert found.distances == ((1, 1), (3, 3))


def test_the_farthest_member_counts():
    found = locality([{"w": np.array([0.0])}, {"w": np.array([0.0])}, {"w": np.array([9.0])}])
    assert found.squared == 36
    assert found.distance == pytest.approx(4)


def test_copies_lie_on_their_average_and_close_half_precision_does_not_round_to_it():
    theta = {"w": torch.randn(7)}
    assert locality([theta, theta]).squared == 0
    close = [
        {"w": torch.tensor([256.0, 0.0], dtype=torch.bfloat16)},
        {"w": torch.tensor([258.0, 0.0], dtype=torch.bfloat16)},
    ]
    assert locality(close).squared == 1


@given(seeds)
def test_angles_are_those_of_task_vectors(seed):
    random = np.random.default_rng(seed)
    start, *thetas = (member(random) for _ in range(4))
    found = angles(thetas, start)
    vectors = []
    for theta in thetas:
        tau = subtract(theta, start)
        vectors.append(torch.cat([tau["a.weight"].flatten(), tau["b"]]).double().numpy())
    for i, a in enumerate(vectors):
        assert found.norms[i] == pytest.approx(np.linalg.norm(a), rel=1e-6)
        assert found.degrees[i][i] == 0
        for j, b in enumerate(vectors):
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            if i != j:
                assert found.degrees[i][j] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-3)
    assert found.mean == pytest.approx(
        np.mean([found.degrees[i][j] for i, j in ((0, 1), (0, 2), (1, 2))]), abs=1e-9
    )


def test_angles_by_hand():
    start = {"w": np.array([1.0, 1.0])}

    def to(x, y):
        return {"w": np.array([1.0 + x, 1.0 + y])}

    found = angles([to(1, 0), to(0, 2), to(-3, 0), to(1, 1)], start)
    assert found.degrees[0] == pytest.approx((0, 90, 180, 45), abs=1e-6)
    assert found.norms == pytest.approx((1, 2, 3, math.sqrt(2)))
    still = angles([to(1, 0), to(0, 0)], start)
    assert math.isnan(still.degrees[0][1])
    assert math.isnan(still.degrees[1][1])
    assert math.isnan(still.mean)
    assert math.isnan(angles([to(1, 0)], start).mean)
    content = json.loads(json.dumps(still.to_dict(), allow_nan=False))
    assert content == {"degrees": [[0.0, None], [None, None]], "norms": [1.0, 0.0], "mean": None}


def test_locality_as_plain_values():
    found = locality([{"w": np.array([-1.0])}, {"w": np.array([1.0])}])
    assert found.to_dict() == {"squared": 1.0, "distance": 1.0, "distances": [[1.0, 1.0]]}


class Lazy(Mapping):
    """Counts how often it is read."""

    def __init__(self, value):
        self.value, self.reads = value, 0

    def __getitem__(self, name):
        self.reads += 1
        return np.array([self.value])

    def __iter__(self):
        return iter(["w"])

    def __len__(self):
        return 1


def test_lazy_members_are_read_twice():
    members = [Lazy(0.0), Lazy(1.0)]
    locality(members)
    assert [each.reads for each in members] == [2, 2]


def test_what_is_refused():
    with pytest.raises(InputError, match="members of at least one ensemble, got none"):
        locality()
    with pytest.raises(InputError, match="no member to combine"):
        locality([])
    with pytest.raises(InputError, match="at least one member, got none"):
        angles([], {"w": np.zeros(1)})
    with pytest.raises(InputError, match="cannot be averaged: 'w' has shape"):
        angles([{"w": np.zeros(2)}], {"w": np.zeros(1)})
