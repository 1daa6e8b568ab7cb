import itertools
import json
import math
import weakref
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.data import digits_task
from mirepoix.landscape import Connection, Point, connect
from mirepoix.landscape import _connect as module
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.scores import ClassificationScore
from mirepoix.types import InputError

NAN, INF = math.nan, math.inf
vectors = st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(np.array)


def theta(*values):
    return {"w": np.array(values, dtype=float)}


def square(weights):
    return float(np.sum(weights["w"] ** 2))


def of_values(*values, **options):
    """A connection whose values on the line are given."""
    given = {i / (len(values) - 1): value for i, value in enumerate(values)}
    return connect(
        [theta(0), theta(1)],
        lambda weights: given[float(weights["w"][0])],
        points=len(values),
        **{"higher_is_better": True, **options},
    )


# The oracle: on a quadratic the path is a parabola, t (1 - t) |a - b|^2 below its chord.


@given(vectors, vectors)
def test_on_a_quadratic_the_path_is_a_parabola(a, b):
    connection = connect([{"w": a}, {"w": b}], square, higher_is_better=True, points=5)
    gap = float(np.sum((a - b) ** 2))
    for t, point in zip((0, 0.25, 0.5, 0.75, 1), connection.points, strict=True):
        assert point.coefficients == (1 - t, t)
        assert point.value == pytest.approx(float(np.sum(((1 - t) * a + t * b) ** 2)), abs=1e-12)
        assert point.chord == pytest.approx(
            (1 - t) * float(np.sum(a**2)) + t * float(np.sum(b**2)), abs=1e-12
        )
        assert point.drop == pytest.approx(t * (1 - t) * gap, abs=1e-12)
    assert connection.barrier == pytest.approx(gap / 4, abs=1e-12)


def test_a_convex_loss_has_no_barrier_and_the_same_as_a_score_has():
    ends = [theta(-1, 0), theta(1, 2)]
    loss = connect(ends, square, higher_is_better=False)
    assert loss.barrier == 0
    assert loss.connected
    score = connect(ends, square, higher_is_better=True)
    assert score.barrier == pytest.approx(8 / 4)
    assert score.worst.coefficients == (0.5, 0.5)
    assert not score.connected
    assert [point.drop for point in score.points] == [-point.drop for point in loss.points]


@given(st.lists(vectors, min_size=3, max_size=3), st.integers(3, 5))
def test_over_a_triangle_each_drop_is_the_sum_over_pairs(ends, points):
    connection = connect([{"w": end} for end in ends], square, higher_is_better=True, points=points)
    assert len(connection.points) == points * (points + 1) // 2
    assert len({point.coefficients for point in connection.points}) == len(connection.points)
    for point in connection.points:
        shares = point.coefficients
        assert sum(shares) == pytest.approx(1, abs=1e-15)
        pairs = itertools.combinations(range(3), 2)
        drop = sum(shares[i] * shares[j] * float(np.sum((ends[i] - ends[j]) ** 2)) for i, j in pairs)
        assert point.drop == pytest.approx(drop, abs=1e-11)


def test_the_centre_of_an_equilateral_triangle_is_the_worst():
    ends = [theta(1, 0, 0), theta(0, 1, 0), theta(0, 0, 1)]
    connection = connect(ends, square, higher_is_better=True, points=4)
    assert connection.worst.coefficients == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert connection.barrier == pytest.approx(2 / 3)
    assert [p.value for p in connection.points if 1 in p.coefficients] == [1, 1, 1]


# What is evaluated, on what, and what stays as it was.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_are_evaluated_bit_for_bit_and_stay_as_they_are(dtype):
    ends = [{"w": torch.randn(50, generator=torch.Generator().manual_seed(i)).to(dtype)} for i in range(2)]
    ends[0]["w"][0] = -0.0
    kept = [end["w"].clone() for end in ends]
    seen = []

    def score(weights):
        seen.append(weights["w"].clone())
        weights["w"].zero_()  # a score that spoils what it is given
        return 0.5

    connect(ends, score, higher_is_better=True, points=3)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for first, last in (
        (seen[0], kept[0]),
        (seen[-1], kept[1]),
        (ends[0]["w"], kept[0]),
        (ends[1]["w"], kept[1]),
    ):
        assert first.dtype == dtype
        assert torch.equal(first.view(integer), last.view(integer))


def test_only_one_interpolated_model_is_alive():
    alive = []

    def score(weights):
        assert [each() for each in alive] == [None] * len(alive)
        alive.append(weakref.ref(weights["w"]))
        return 0.5

    connect([theta(0), theta(1), theta(2)], score, higher_is_better=True, points=4)
    assert len(alive) == 10


class Lazy(Mapping):
    def __init__(self, value):
        self.value, self.reads = value, Counter()

    def __getitem__(self, name):
        self.reads[name] += 1
        return np.array([float(self.value)])

    def __iter__(self):
        return iter(["w"])

    def __len__(self):
        return 1


def test_lazy_ends_are_read_once_for_each_point_that_they_are_part_of():
    ends = [Lazy(0), Lazy(1)]
    connect(ends, square, higher_is_better=True, points=6)
    assert [end.reads["w"] for end in ends] == [5, 5]


def test_refresh_is_for_what_is_between_the_ends():
    seen = []

    def refresh(weights):
        return {"w": weights["w"] + 100}

    def score(weights):
        seen.append(float(weights["w"][0]))
        return 0.5

    connect([theta(0), theta(1)], score, higher_is_better=True, points=3, refresh=refresh)
    assert seen == [0, 100.5, 1]
    seen.clear()
    connect([theta(0), theta(1), theta(2)], score, higher_is_better=True, points=3, refresh=refresh)
    assert sorted(seen) == [0, 1, 2, 100.5, 101, 101.5]


def test_progress_is_told_after_each_point():
    told = []
    connect(
        [theta(0), theta(1)],
        square,
        higher_is_better=True,
        points=4,
        progress=lambda *args: told.append(args),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# The verdict without samples.


def test_the_tolerance_decides_its_edge_included():
    assert of_values(0.5, 0.25, 0.5, tolerance=0.25).connected
    assert not of_values(0.5, 0.25, 0.5, tolerance=0.24).connected
    assert not of_values(0.5, 0.75, 0.5, tolerance=0.24, higher_is_better=False).connected
    assert of_values(0.5, 0.49, 0.5).connected
    assert not of_values(0.5, 0.47, 0.5).connected


def test_of_equal_barriers_the_first_is_named():
    assert of_values(1, 0, 0.5, 0, 1).worst.coefficients == (0.75, 0.25)


def test_copies_are_connected_at_tolerance_zero():
    connection = connect([theta(3), theta(3)], square, higher_is_better=True, tolerance=0)
    assert connection.connected
    assert connection.barrier == 0


def test_a_value_that_is_nan_or_infinitely_bad_is_a_barrier():
    for middle, higher in ((NAN, True), (NAN, False), (-INF, True), (INF, False)):
        connection = of_values(0.5, middle, 0.5, higher_is_better=higher)
        assert connection.barrier == INF
        assert not connection.connected
        assert json.loads(json.dumps(connection.to_dict(), allow_nan=False))["barrier"] is None
    assert of_values(0.5, INF, 0.5).barrier == 0


def test_the_sentence_names_verdict_place_barrier_and_tolerance():
    assert of_values(0.5, 0.25, 0.5).verdict() == (
        "Not connected: at t = 0.5 the value is 0.25 worse than the chord, beyond the tolerance of 0.02."
    )
    assert of_values(0.5, 0.49, 0.5, tolerance=0.05).verdict("{:.1f}".format) == (
        "Connected: the barrier is 0.0, at t = 0.5, within the tolerance of 0.1."
    )
    assert of_values(0.5, 0.6, 0.5).verdict() == "Connected: no point is worse than the chord."
    triangle = connect([theta(1, 0), theta(0, 1), theta(0, 0)], square, higher_is_better=True, points=3)
    assert "at coefficients 0.5, 0.5, 0 the value is 0.5 worse" in triangle.verdict()


def test_the_result_as_plain_values():
    assert of_values(0.5, 0.25, 0.5).to_dict() == {
        "points": [
            {"coefficients": [1.0, 0.0], "value": 0.5, "chord": 0.5, "drop": 0.0},
            {"coefficients": [0.5, 0.5], "value": 0.25, "chord": 0.5, "drop": 0.25},
            {"coefficients": [0.0, 1.0], "value": 0.5, "chord": 0.5, "drop": 0.0},
        ],
        "higher_is_better": True,
        "barrier": 0.25,
        "at": [0.5, 0.5],
        "tolerance": 0.02,
        "samples": None,
        "margin": 0.0,
        "connected": False,
        "curved": 0.5,
        "concave": False,
    }


# Concavity.


def by_all_triples(connection):
    """The largest second difference over all triples of points of which one is midway, one step from both."""
    sign = 1 if connection.higher_is_better else -1
    places = [(np.array(point.coefficients), point.value) for point in connection.points]
    step = min(np.abs(a - b).sum() for (a, _), (b, _) in itertools.combinations(places, 2))
    largest = 0.0
    for (a, first), (b, middle), (c, last) in itertools.permutations(places, 3):
        near = abs(np.abs(a - b).sum() - step) < 1e-9
        if near and np.abs(a + c - 2 * b).max() < 1e-9:
            largest = max(largest, sign * (first - 2 * middle + last))
    return largest


@given(vectors, vectors, st.booleans())
def test_of_a_parabola_the_second_difference_is_the_same_everywhere(a, b, higher):
    connection = connect([{"w": a}, {"w": b}], square, higher_is_better=higher, points=5)
    gap = float(np.sum((a - b) ** 2))
    assert connection.curved == pytest.approx(2 * gap / 16 if higher else 0, abs=1e-11)
    assert connection.curved == pytest.approx(by_all_triples(connection), abs=1e-11)
    assert connection.concave == (connection.curved <= 0.02)


@given(st.lists(vectors, min_size=3, max_size=3), st.integers(3, 5), st.booleans())
def test_over_a_triangle_neighbours_in_all_three_directions_count(ends, points, higher):
    connection = connect([{"w": end} for end in ends], square, higher_is_better=higher, points=points)
    assert connection.curved == pytest.approx(by_all_triples(connection), abs=1e-11)
    widest = max(float(np.sum((a - b) ** 2)) for a, b in itertools.combinations(ends, 2))
    assert connection.curved == pytest.approx(2 * widest / (points - 1) ** 2 if higher else 0, abs=1e-10)


def test_what_bends_twice_is_connected_and_not_concave():
    connection = of_values(0.5, 0.9, 0.6, 0.9, 0.5)
    assert connection.connected
    assert connection.curved == pytest.approx(0.6)
    assert not connection.concave
    assert of_values(0.5, 0.9, 0.6, 0.9, 0.5, tolerance=0.61).concave
    hill = of_values(0.5, 0.7, 0.8, 0.7, 0.5, tolerance=0)
    assert hill.concave
    assert hill.connected
    bowl = of_values(0.8, 0.7, 0.6, 0.7, 0.8, tolerance=0, higher_is_better=False)
    assert bowl.concave
    assert not of_values(0.8, 0.7, 0.6, 0.7, 0.8, tolerance=0.1).concave


def test_a_line_inside_the_triangle_is_a_line():
    """As the points of three weights may lie: from the middle of two to the third."""
    values = (0.5, 0.4, 0.8, 0.5)
    points = tuple(
        Point(((1 - t) / 2, (1 - t) / 2, t), value, value, 0.0)
        for t, value in zip((0, 1 / 3, 2 / 3, 1), values, strict=True)
    )
    assert Connection(points, True, 0.02, None, 0.0).curved == pytest.approx(0.5 - 0.8 + 0.8)
    assert Connection(points, False, 0.02, None, 0.0).curved == pytest.approx(-(0.4 - 1.6 + 0.5))


def test_a_straight_line_and_copies_do_not_bend_and_nan_does():
    assert of_values(0.1, 0.2, 0.3, 0.4, tolerance=0).concave
    assert connect([theta(3), theta(3)], square, higher_is_better=True, tolerance=0).curved == 0
    for middle in (NAN, INF, -INF):
        bent = of_values(0.5, middle, 0.5)
        assert bent.curved == INF
        assert not bent.concave
        assert bent.to_dict()["curved"] is None


# One value per sample.


def sampled(drops, *, tolerance=0.02, seed=0, higher_is_better=True):
    """Two ends that are right on every sample, and between them the given drops."""
    sign = 1 if higher_is_better else -1

    def score(weights):
        middle = float(weights["w"][0]) == 0.5
        return sign * (1 - np.asarray(drops, dtype=float) * middle)

    return connect(
        [theta(0), theta(1)],
        score,
        higher_is_better=higher_is_better,
        points=3,
        tolerance=tolerance,
        seed=seed,
    )


def test_the_value_is_the_mean_of_the_samples():
    connection = sampled([1, 0, 0, 0])
    assert [point.value for point in connection.points] == [1, 0.75, 1]
    assert connection.barrier == 0.25
    assert connection.samples == 4


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_margin_of_one_point_is_that_of_a_mean(higher_is_better):
    """With one point between the ends, 1.96 standard errors."""
    drops = np.random.default_rng(0).normal(size=2000)
    connection = sampled(drops, higher_is_better=higher_is_better)
    assert connection.margin == pytest.approx(1.96 * drops.std() / math.sqrt(2000), rel=0.08)
    assert connection.barrier == pytest.approx(max(0, drops.mean()), abs=1e-12)


def test_the_margin_is_of_differences_so_what_ends_and_middle_share_does_not_count():
    hard = np.random.default_rng(0).normal(size=100)
    same = connect([theta(0), theta(1)], lambda weights: hard, higher_is_better=True, points=3)
    assert same.margin == pytest.approx(0, abs=1e-15)
    shifted = connect(
        [theta(0), theta(1)],
        lambda weights: hard - 0.1 * (0 < weights["w"][0] < 1),
        higher_is_better=True,
        points=3,
    )
    assert shifted.barrier == pytest.approx(0.1)
    assert shifted.margin == pytest.approx(0, abs=1e-15)
    assert not shifted.connected


def test_the_margin_covers_all_points_at_once():
    """The largest of many errors is larger than one of them."""
    random = np.random.default_rng(0)

    def margin(points):
        ends = [theta(0), theta(1)]
        return connect(
            ends, lambda weights: random.normal(size=1000), higher_is_better=True, points=points
        ).margin

    assert margin(11) > 1.15 * margin(3)


def test_the_margin_depends_on_the_seed_alone():
    drops = np.random.default_rng(0).normal(size=30)
    assert sampled(drops).margin == sampled(drops).margin
    assert sampled(drops).margin != sampled(drops, seed=1).margin


def test_a_barrier_within_chance_is_not_held_against_the_weights_and_the_sentence_says_so():
    few = sampled([1] + [0] * 9)
    assert few.barrier == pytest.approx(0.1)
    assert few.connected
    assert few.verdict().startswith(
        "Connected as far as can be told: the barrier of 0.1, at t = 0.5, is within"
    )
    assert "the noise of 10 samples" in few.verdict()
    assert few.verdict().endswith("cannot be excluded; take more samples.")
    many = sampled(([1] + [0] * 9) * 100)
    assert many.barrier == pytest.approx(0.1)
    assert not many.connected
    assert "the noise of 1,000 samples" in many.verdict()
    fine = sampled([0.001, -0.001] * 500)
    assert fine.connected
    assert "cannot be excluded" not in fine.verdict()


def test_a_drop_of_just_the_tolerance_is_rarely_called_a_barrier(monkeypatch):
    """At most one time in twenty; by the normal law one in forty, and 12 of 200 would be four deviations off."""
    monkeypatch.setattr(module, "RESAMPLES", 200)
    random = np.random.default_rng(3)
    alarms = sum(not sampled(random.normal(0.1, 1, size=80), tolerance=0.1).connected for _ in range(200))
    assert alarms <= 14


def test_infinite_samples_between_the_ends_are_a_barrier_of_a_loss():
    connection = connect(
        [theta(0), theta(1)],
        lambda weights: np.array([1.0, INF if weights["w"][0] == 0.5 else 1.0]),
        higher_is_better=False,
        points=3,
    )
    assert connection.barrier == INF
    assert connection.margin == 0
    assert not connection.connected


# Errors.


def test_what_connect_refuses():
    def refused(match, thetas=None, score=square, **options):
        with pytest.raises(InputError, match=match):
            connect(thetas or [theta(0), theta(1)], score, higher_is_better=True, **options)

    refused("expected 2 or 3 weights, got 1", thetas=[theta(0)])
    refused("expected 2 or 3 weights, got 4", thetas=[theta(0)] * 4)
    refused("points: expected at least 3, the ends and one between, got 2", points=2)
    for tolerance in (-0.1, NAN, INF):
        refused("tolerance: expected a number from 0", tolerance=tolerance)
    refused("members 0 and 1 cannot be averaged: 'w' has shape", thetas=[theta(0), theta(0, 1)])
    refused("got str of shape none", score=lambda weights: "good")
    refused("got NoneType", score=lambda weights: {"accuracy": 1}.get("x"))
    refused(r"got ndarray of shape \(2, 2\)", score=lambda weights: np.zeros((2, 2)))
    refused(r"got list of shape none", score=lambda weights: [])
    refused("expected a finite value at end 0, got nan", score=lambda weights: NAN)
    refused(
        "expected a finite value at end 1, got -inf",
        score=lambda weights: -INF if weights["w"][0] == 1 else 0.0,
    )
    sizes = iter((5, 4))
    refused(r"expected values of shape \(5,\) everywhere", score=lambda weights: np.zeros(next(sizes)))


def test_tensors_are_numbers_too():
    connection = connect(
        [{"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0, requires_grad=True)}],
        lambda weights: (weights["w"].requires_grad_() - 0.5) ** 2,
        higher_is_better=True,
        points=3,
    )
    assert connection.barrier == 0.25
    assert isinstance(connection, Connection)
    assert connection.points[1] == Point((0.5, 0.5), 0.0, 0.25, 0.25)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_scores_in_half_precision_are_numbers_too(shape):
    ends = [{"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}]
    connection = connect(
        ends, lambda weights: (weights["w"] ** 2).expand(shape).bfloat16(), higher_is_better=True, points=3
    )
    assert [point.value for point in connection.points] == [1, 0, 1]


# Real networks.


def trained(score, theta, steps, first):
    """``theta`` after some steps of Adam, with the minibatches from number ``first`` on."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        score.loss(leaves, first + step).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}


def test_fine_tunings_of_one_start_are_connected_and_strangers_are_not():
    task = digits_task(size=8)
    spec = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    teacher = ClassificationScore(spec, task, batch_size=64, device="cpu")
    judge = ClassificationScore(spec, task.split(None), device="cpu")
    start = trained(teacher, initial_weights(spec, seed=0), 60, first=0)
    siblings = [trained(teacher, start, 15, first=100 * i) for i in (1, 2)]
    stranger = trained(teacher, initial_weights(spec, seed=1), 60, first=300)
    assert min(judge(theta) for theta in (*siblings, stranger)) > 0.6
    close = connect(siblings, judge.samples, higher_is_better=True, points=5)
    far = connect([siblings[0], stranger], judge.samples, higher_is_better=True, points=5)
    assert close.connected
    assert not far.connected
    assert far.barrier > 0.3 > 10 * close.barrier
