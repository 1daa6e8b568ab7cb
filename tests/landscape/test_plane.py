"""The plane through three weights: geometry by hand, and what stays as it was."""

from __future__ import annotations

import json
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mirepoix.landscape._plane import Place, plane
from mirepoix.types import InputError
from mirepoix.weights import average, distance

vectors = st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(np.array)


def theta(*values):
    return {"w": np.array(values, dtype=float)}


def square(weights):
    return float(np.sum(weights["w"] ** 2))


CORNERS = theta(1, 1), theta(4, 5), theta(-3, 4)  # 5 and 5 from the first, with a right angle


def gram_schmidt(a, b, c):
    u = (b["w"] - a["w"]) / np.linalg.norm(b["w"] - a["w"])
    v = (c["w"] - a["w"]) - u * (u @ (c["w"] - a["w"]))
    return u, v / np.linalg.norm(v)


def test_the_grid_covers_the_triangle_and_its_margin():
    found = plane(*CORNERS, square, points=(7, 4), margin=0.2)
    assert found.x == pytest.approx(np.linspace(-1, 6, 7))
    assert found.y == pytest.approx(np.linspace(-1, 6, 4))
    assert len(found.values) == len(found.coefficients) == 4
    assert len(found.values[0]) == len(found.coefficients[0]) == 7
    wide = plane(theta(0, 0), theta(2, 0), theta(-4, 3), square, points=(3, 3), margin=0.5)
    assert wide.x == pytest.approx([-7, -1, 5])
    assert wide.y == pytest.approx([-1.5, 1.5, 4.5])
    beyond = plane(theta(0, 0), theta(2, 0), theta(6, 3), square, points=(2, 2), margin=0)
    assert beyond.x == pytest.approx([0, 6])


def test_places_are_where_distances_say():
    a, b, c = theta(1, 2, 3), theta(3, -1, 0), theta(0, 5, 5)
    found = plane(a, b, c, square, points=(2, 2))
    everyone = {"a": a, "b": b, "c": c, "average": average([a, b, c])}
    assert list(found.places) == list(everyone)
    for one, x in everyone.items():
        assert found.places[one].value == pytest.approx(square(x))
        for other, y in everyone.items():
            p, q = found.places[one], found.places[other]
            assert math.hypot(p.x - q.x, p.y - q.y) == pytest.approx(distance(x, y), abs=1e-12)
    assert (found.places["a"].x, found.places["a"].y) == (0, 0)
    assert found.places["b"].y == 0
    assert found.places["c"].y > 0


@given(vectors, vectors, vectors)
def test_each_value_is_that_of_the_point_on_orthonormal_axes(a, b, c):
    a, b, c = ({"w": x} for x in (a, b, c))
    sides = [np.linalg.norm(x["w"] - y["w"]) for x, y in ((a, b), (b, c), (a, c))]
    assume(min(sides) > 0.1 and abs(2 * max(sides) - sum(sides)) > 0.1)
    u, v = gram_schmidt(a, b, c)
    found = plane(a, b, c, square, points=(3, 4), margin=0.3)
    for y, row, mixtures in zip(found.y, found.values, found.coefficients, strict=True):
        for x, value, mixture in zip(found.x, row, mixtures, strict=True):
            assert sum(mixture) == pytest.approx(1, abs=1e-12)
            assert value == pytest.approx(float(np.sum((a["w"] + x * u + y * v) ** 2)), rel=1e-9, abs=1e-9)
    corner = found.coefficients[0][0]
    assert min(corner) < 0  # outside the triangle


def test_a_grid_of_ones_own():
    found = plane(*CORNERS, square, grid=([0, 5], [0.0]))
    assert found.x == (0, 5)
    assert found.y == (0,)
    assert found.values[0] == pytest.approx((2, 41))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_stay_as_they_are_and_one_set_is_alive(dtype):
    random = torch.Generator().manual_seed(0)
    thetas = [{"w": torch.randn(50, generator=random).to(dtype)} for _ in range(3)]
    kept = [each["w"].clone() for each in thetas]
    alive, told, seen = [], [], []

    def score(weights):
        assert [each() for each in alive] == [None] * len(alive)
        alive.append(weakref.ref(weights["w"]))
        seen.append(weights["w"].clone())
        weights["w"].zero_()
        return 0.5

    found = plane(*thetas, score, points=(3, 2), progress=lambda *args: told.append(args))
    assert all(torch.equal(each["w"], before) for each, before in zip(thetas, kept, strict=True))
    assert told == [(i, 10) for i in range(1, 11)]
    for value, before in zip(seen, kept, strict=False):  # the corners come first, bit for bit
        assert value.dtype == dtype
        assert torch.equal(value, before)
    assert found.places["b"].value == 0.5


def test_values_per_sample_are_averaged_and_nan_is_kept():
    found = plane(*CORNERS, lambda weights: weights["w"], grid=([0.0], [0.0]))
    assert found.values == ((1.0,),)
    broken = plane(*CORNERS, lambda weights: math.nan, grid=([0.0], [0.0]))
    assert math.isnan(broken.values[0][0])
    content = json.loads(json.dumps(broken.to_dict(), allow_nan=False))
    assert content["values"] == [[None]]
    assert content["places"]["a"] == {"x": 0.0, "y": 0.0, "value": None}


def test_the_result_as_plain_values():
    a, b, c = theta(0, 0), theta(2, 0), theta(0, 2)
    content = plane(a, b, c, square, grid=([0.0, 1.0], [0.0])).to_dict()
    third = pytest.approx(2 / 3)
    assert content == {
        "x": [0.0, 1.0],
        "y": [0.0],
        "values": [[0.0, 1.0]],
        "coefficients": [[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]],
        "places": {
            "a": {"x": 0.0, "y": 0.0, "value": 0.0},
            "b": {"x": 2.0, "y": 0.0, "value": 4.0},
            "c": {"x": 0.0, "y": 2.0, "value": 4.0},
            "average": {"x": third, "y": third, "value": pytest.approx(8 / 9)},
        },
        "clamped": 0,
    }
    assert isinstance(plane(a, b, c, square, points=(2, 2)).places["c"], Place)


def norm(value, mean, variance, count=0):
    return {
        "w": torch.tensor(value),
        "n.running_mean": torch.tensor([mean]),
        "n.running_var": torch.tensor([variance]),
        "n.num_batches_tracked": torch.tensor(count),
    }


def test_batch_norm_follows_with_the_same_coefficients_and_does_not_bend_the_axes():
    a, b, c = norm([0.0, 0.0], 0.0, 1.0), norm([2.0, 0.0], 10.0, 2.0), norm([0.0, 2.0], -100.0, 3.0, 7)
    seen = {}

    def score(weights):
        key = (round(float(weights["w"][0]), 5), round(float(weights["w"][1]), 5))
        seen[key] = float(weights["n.running_mean"][0]), float(weights["n.running_var"][0])
        return 0.0

    found = plane(a, b, c, score, grid=([1.0, 4.0], [0.0, 1.0]))
    assert found.places["c"].y == 2
    assert seen[(1, 1)] == pytest.approx((5 - 50, 1 + 0.5 + 1))
    assert seen[(4, 0)] == pytest.approx((20, 3))
    assert found.clamped == 0


def test_negative_variances_are_counted_and_other_warnings_go_on():
    a, b, c = norm([0.0, 0.0], 0.0, 1.0), norm([2.0, 0.0], 0.0, 0.1), norm([0.0, 2.0], 0.0, 1.0)
    smallest = []

    def score(weights):
        smallest.append(float(weights["n.running_var"].min()))
        return 0.0

    found = plane(a, b, c, score, grid=([0.0, 4.0, 6.0], [0.0]))
    assert found.clamped == 2
    assert min(smallest) == 0

    def loud(weights):
        warnings.warn("the score says so", stacklevel=1)
        return 0.0

    with pytest.warns(UserWarning, match="the score says so"):
        plane(a, b, c, loud, grid=([0.0], [0.0]))


def test_refresh_is_for_all_but_the_three():
    seen = []

    def score(weights):
        seen.append(float(weights["w"][0]))
        return 0.0

    plane(
        theta(0, 0),
        theta(3, 0),
        theta(0, 3),
        score,
        grid=([0.0, 1.0], [0.0]),
        refresh=lambda weights: {"w": weights["w"] + 100},
    )
    assert seen == pytest.approx([0, 3, 0, 101, 0, 101])


def test_what_is_refused():
    def refused(match, thetas=CORNERS, score=square, **options):
        with pytest.raises(InputError, match=match):
            plane(*thetas, score, **options)

    a, b, _ = CORNERS
    refused("lie on one line", (a, b, b))
    refused("lie on one line", (a, a, b))
    refused("lie on one line", (a, a, a))
    refused(r"lie on one line \(b is 1 from a, c is 3 from a", (theta(0.0, 0), theta(1, 0), theta(-3, 1e-9)))
    refused("must be finite", (a, b, theta(math.nan, 0)))
    refused("cannot be averaged: 'w' has shape", (a, b, theta(1)))
    refused("at least 2 columns and 2 rows", points=(1, 5))
    refused("margin: expected a number from 0", margin=-0.1)
    refused("margin: expected a number from 0", margin=math.inf)
    refused("increasing coordinates of the columns", grid=([1, 0], [0]))
    refused("increasing coordinates of the rows", grid=([0, 1], []))
    refused("score: expected a number, or one per sample", score=lambda weights: "good")
