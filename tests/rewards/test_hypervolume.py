import importlib.util
import math
import sys
import time
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirepoix.rewards import Volume, area_over_front, common_box, hypervolume
from mirepoix.rewards import _hypervolume as module
from mirepoix.types import InputError
from tests.reference import hypervolume as reference

EXAMPLE = [(0.2, 0.9), (0.5, 0.6), (0.9, 0.1), (0.4, 0.5)]


def clouds(rewards, most=7, elements=st.floats(-0.25, 1)):  # noqa: B008
    return arrays.arrays(float, st.tuples(st.integers(1, most), st.just(rewards)), elements=elements)


@pytest.fixture(autouse=True)
def without_moocore(monkeypatch):
    """Our own code, whether or not moocore is installed."""
    monkeypatch.setitem(sys.modules, "moocore", None)


# Hypervolume


def test_the_example_of_two_rewards():
    found = hypervolume(EXAMPLE, (0, 0))
    assert found.value == pytest.approx(0.40, abs=1e-15)
    assert float(found) == found.value
    assert (found.points, found.used, found.standard_error, found.higher_is_better) == (4, 3, None, True)


@given(st.integers(1, 5).flatmap(clouds))
def test_it_is_that_of_inclusion_and_exclusion(points):
    expected = reference.hypervolume(points.tolist(), [0.0] * points.shape[1])
    assert hypervolume(points, [0.0] * points.shape[1]).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 4).flatmap(lambda n: clouds(n, elements=st.integers(0, 3).map(float))))
def test_so_it_is_where_many_coordinates_are_equal(points):
    expected = reference.hypervolume(points.tolist(), [0.0] * points.shape[1])
    assert hypervolume(points, [0.0] * points.shape[1]).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 4).flatmap(clouds), st.data())
def test_another_point_never_lowers_it_and_a_dominated_one_does_not_change_it(points, data):
    rewards = points.shape[1]
    reference_point = [-0.5] * rewards
    before = hypervolume(points, reference_point).value
    new = data.draw(arrays.arrays(float, rewards, elements=st.floats(-0.25, 1)))
    assert hypervolume(np.vstack([points, new]), reference_point).value >= before - 1e-12
    below = np.vstack([points, points[0] - 0.125])
    assert hypervolume(below, reference_point).value == pytest.approx(before, abs=1e-12)
    assert hypervolume(points[::-1], reference_point).value == pytest.approx(before, abs=1e-12)


@given(st.integers(2, 4).flatmap(clouds), st.floats(0.5, 4), st.floats(-3, 3))
def test_it_moves_with_its_reference_and_scales_with_each_reward(points, scale, shift):
    rewards = points.shape[1]
    before = hypervolume(points, [-0.5] * rewards).value
    moved = points + shift
    assert hypervolume(moved, [-0.5 + shift] * rewards).value == pytest.approx(before, abs=1e-9)
    stretched = points * np.array([scale] + [1.0] * (rewards - 1))
    corner = [-0.5 * scale] + [-0.5] * (rewards - 1)
    assert hypervolume(stretched, corner).value == pytest.approx(scale * before, abs=1e-9)


def test_a_point_on_the_edge_of_the_reference_adds_nothing():
    assert hypervolume([(1.0, 0.0), (0.0, 1.0), (-1.0, 5.0)], (0, 0)).value == 0
    assert hypervolume([(1.0, 0.0)], (0, 0)).used == 0
    assert hypervolume([(3.0,)], (1.0,)).value == 2


def test_one_box_and_two_boxes_in_many_rewards():
    for rewards in range(2, 9):
        unit = np.ones((1, rewards))
        assert hypervolume(unit, np.zeros(rewards)).value == pytest.approx(1)
        # Two boxes that share a cube of side one half: 1/2 each way along two axes.
        pair = np.ones((2, rewards))
        pair[0, 0] = pair[1, 1] = 0.5
        assert hypervolume(pair, np.zeros(rewards)).value == pytest.approx(0.75)


def test_ten_thousand_points_of_two_rewards_take_less_than_a_second():
    angle = np.random.default_rng(0).uniform(0, math.pi / 2, 10_000)
    start = time.process_time()
    found = hypervolume(np.column_stack([np.cos(angle), np.sin(angle)]), (0, 0))
    assert time.process_time() - start < 1
    assert found.value == pytest.approx(math.pi / 4, abs=1e-3)


# By moocore


def test_three_rewards_are_given_to_moocore_where_it_is_installed(monkeypatch):
    asked = []

    def count(points, /, ref, *, maximise=False):
        asked.append((points.tolist(), list(ref), maximise))
        return 7.0

    monkeypatch.setitem(sys.modules, "moocore", types.SimpleNamespace(hypervolume=count))
    found = hypervolume([(1.0, 2.0, 3.0), (0.5, 1.0, 1.0), (0.0, 9.0, 9.0)], (0.0, 1.0, 0.0))
    assert found.value == 7
    assert asked == [
        ([[1.0, 1.0, 3.0]], [0, 0, 0], True)
    ]  # above the reference, undominated, measured from it
    assert hypervolume(EXAMPLE, (0, 0)).value == pytest.approx(0.4)
    assert len(asked) == 1


@pytest.mark.skipif(importlib.util.find_spec("moocore") is None, reason="moocore is not installed")
def test_moocore_agrees(monkeypatch):
    monkeypatch.delitem(sys.modules, "moocore")
    random = np.random.default_rng(0)
    for rewards in (3, 4, 5):
        points = random.random((12, rewards))
        expected = module._recursive(module.front_of(points))
        assert hypervolume(points, np.zeros(rewards)).value == pytest.approx(expected, abs=1e-12)


# By sampling


@pytest.mark.parametrize("rewards", [2, 4, 9])
def test_the_estimate_is_within_its_error_of_the_truth(rewards):
    points = np.random.default_rng(1).random((8, rewards))
    truth = reference.hypervolume(points.tolist(), [0.0] * rewards)
    found = hypervolume(points, np.zeros(rewards), method="monte_carlo", samples=20_000, seed=1)
    assert found.standard_error is not None
    assert 0 < found.standard_error < 0.01 * truth
    assert abs(found.value - truth) < 4 * found.standard_error


def test_its_error_shrinks_as_the_root_of_the_samples():
    points = np.random.default_rng(1).random((8, 3))
    few, many = (
        hypervolume(points, np.zeros(3), method="monte_carlo", samples=samples) for samples in (1000, 100_000)
    )
    assert few.standard_error / many.standard_error == pytest.approx(10, rel=0.1)
    again = hypervolume(points, np.zeros(3), method="monte_carlo", samples=1000)
    assert again.value == few.value
    assert hypervolume(points, np.zeros(3), method="monte_carlo", samples=1000, seed=1).value != few.value


def test_nine_rewards_are_estimated_and_eight_are_not():
    for rewards in (8, 9):
        points = np.random.default_rng(1).random((5, rewards))
        found = hypervolume(points, np.zeros(rewards))
        exact = hypervolume(points, np.zeros(rewards), method="exact")
        assert (found.standard_error is None) == (rewards == 8)
        assert found.value == pytest.approx(exact.value, abs=4 * (found.standard_error or 1e-12))
    nothing = hypervolume(np.zeros((3, 9)), np.ones(9))
    assert (nothing.value, nothing.standard_error) == (0, 0)


# Area over a front


@given(clouds(2, most=5))
def test_the_linear_area_is_what_lies_over_the_line(points):
    ideal, nadir = (1.5, 1.25), (-0.5, -0.25)
    expected = reference.area_over_line(points.tolist(), ideal, nadir, strips=20_000)
    found = area_over_front(points, ideal, nadir, keep_dominated=True)
    assert found.value == pytest.approx(expected, abs=3e-4)


@given(st.integers(2, 4).flatmap(clouds))
def test_the_staircase_is_the_complement_of_the_hypervolume(points):
    rewards = points.shape[1]
    ideal, nadir = np.full(rewards, 1.25), np.full(rewards, -0.5)
    found = area_over_front(points, ideal, nadir, mode="staircase")
    box = float((ideal - nadir).prod())
    assert found.value == pytest.approx(box - hypervolume(points, nadir).value, abs=1e-12)
    scaled = area_over_front(points, ideal, nadir, mode="staircase", scale="minmax")
    assert scaled.value == pytest.approx(found.value / box, abs=1e-12)


@given(clouds(2), st.floats(0.5, 4), st.floats(-3, 3))
def test_a_scaled_area_ignores_scale_and_shift_of_a_reward(points, scale, shift):
    ideal, nadir = np.array([1.25, 1.5]), np.array([-0.5, -0.75])
    for mode in ("linear", "staircase"):
        before = area_over_front(points, ideal, nadir, mode=mode, scale="minmax").value
        after = area_over_front(
            points * scale + shift, ideal * scale + shift, nadir * scale + shift, mode=mode, scale="minmax"
        ).value
        assert after == pytest.approx(before, abs=1e-9)
        assert 0 <= before <= 1


@given(clouds(2))
def test_a_line_through_undominated_points_is_never_below_the_stairs(points):
    box = (1.25, 1.25), (-0.5, -0.5)
    line = area_over_front(points, *box).value
    stairs = area_over_front(points, *box, mode="staircase").value
    assert line <= stairs + 1e-12
    assert area_over_front(points, *box, keep_dominated=True, mode="staircase").value == pytest.approx(stairs)


def test_ideal_and_nadir_are_the_extremes_by_default():
    found = area_over_front(EXAMPLE, scale="minmax", mode="staircase")
    assert (found.ideal, found.nadir, found.scale) == ((0.9, 0.9), (0.2, 0.1), "minmax")
    assert (found.points, found.used, found.higher_is_better) == (4, 3, False)
    assert area_over_front(EXAMPLE, keep_dominated=True).used == 4


def test_of_points_with_one_first_reward_the_line_comes_from_the_higher():
    points = [(0.0, 1.0), (0.5, 0.25), (0.5, 0.75), (1.0, 0.0)]
    expected = 0.5 * (0 + 0.25) / 2 + 0.5 * (0.75 + 1) / 2
    for order in (points, points[::-1]):
        assert area_over_front(order, keep_dominated=True).value == pytest.approx(expected)


def test_one_point_at_the_ideal_leaves_nothing_over():
    assert area_over_front([(1.0, 1.0)], nadir=(0, 0)).value == 0
    assert area_over_front([(0.0, 0.0)], ideal=(1, 1)).value == 1
    assert area_over_front([(0.0, 0.0)], ideal=(1, 1), mode="staircase").value == 1


def test_what_is_printed_says_convention_direction_bounds_scale_and_count():
    text = str(area_over_front(EXAMPLE, scale="minmax"))
    for part in ("area over the front (linear)", "lower is better", "ideal (0.9, 0.9)", "nadir (0.2, 0.1)"):
        assert part in text
    assert "scaling minmax, 3 of 4 points count" in text
    text = str(hypervolume(EXAMPLE, (0, 0)))
    for part in (
        "0.4: hypervolume above the nadir",
        "higher is better",
        "ideal none",
        "nadir (0, 0)",
        "scaling none",
    ):
        assert part in text
    assert "dominated points kept" in str(area_over_front(EXAMPLE, keep_dominated=True))
    estimate = hypervolume(EXAMPLE, (0, 0), method="monte_carlo")
    assert "(standard error)" in str(estimate)
    assert Volume(**{**estimate.to_dict(), "nadir": (0.0, 0.0)}) == estimate


def test_the_common_box_holds_both_fronts():
    ideal, nadir = common_box([(1, 5), (3, 4)], [(2, 7)])
    assert (ideal.tolist(), nadir.tolist()) == ([3, 7], [1, 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypervolume([(1, np.nan)], (0, 0)), "got nan in row 0, reward 1"),
        (lambda: hypervolume(EXAMPLE, (0, 0, 0)), "reference: expected 2 finite numbers"),
        (lambda: hypervolume(EXAMPLE, (0, np.inf)), "reference: expected 2 finite numbers"),
        (
            lambda: hypervolume(EXAMPLE, (0, 0), method="wfg"),
            "method: expected one of auto, exact, monte_carlo",
        ),
        (lambda: hypervolume(EXAMPLE, (0, 0), samples=1), "samples: expected at least 2, got 1"),
        (
            lambda: area_over_front(EXAMPLE, mode="stairs"),
            "mode: expected one of linear, staircase, got 'stairs'",
        ),
        (lambda: area_over_front(EXAMPLE, scale="unit"), "scale: expected 'minmax' or None, got 'unit'"),
        (lambda: area_over_front([(1, 2, 3)]), "needs two rewards, got 3. Use 'staircase'"),
        (
            lambda: area_over_front(EXAMPLE, ideal=(0.8, 1)),
            "ideal: expected a bound .* row 2 has 0.9 in reward 0",
        ),
        (
            lambda: area_over_front(EXAMPLE, nadir=(0, 0.5)),
            "nadir: expected a bound .* row 2 has 0.1 in reward 1",
        ),
        (
            lambda: area_over_front([(1, 2), (1, 3)], scale="minmax"),
            "reward 0 is 1 in the ideal and the nadir, so it cannot",
        ),
        (lambda: common_box([(1, 2)], [(1, 2, 3)]), "fronts of the same rewards, got \\[2, 3\\]"),
        (lambda: common_box(), "fronts of the same rewards"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
