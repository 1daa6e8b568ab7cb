import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirepoix.rewards import RewardFront, chord_margin, reward_connectivity, simplex_design, simplex_lattice
from mirepoix.types import InputError
from tests.reference import reward_connectivity as reference
from tests.rewards.fronts import NEWS, table_front

numbers = st.floats(-2, 2)


def _line(values, **options):
    """Two experts on a line, with values ``(points, rewards, items)``."""
    last = len(values) - 1
    rewards = tuple(f"r{k}" for k in range(values.shape[1]))
    return RewardFront(
        experts=("a", "b"),
        rewards=rewards,
        coefficients=tuple({"a": 1 - i / last, "b": i / last} for i in range(last + 1)),
        values=values,
        **options,
    )


def three_experts(means):
    names = ("a", "b", "c")
    return RewardFront(
        names, tuple(f"r{k}" for k in range(means.shape[1])), tuple(simplex_lattice(names, 2)), means
    )


# Margins


@given(arrays.arrays(float, (6, 2), elements=numbers))
def test_margins_of_three_experts_are_those_of_the_loop(means):
    front = three_experts(means)
    ends = front.ends()
    expected = reference.margins(front.shares.tolist(), means.tolist(), means[ends].tolist())
    found = reward_connectivity(front)
    assert found.margins == pytest.approx(np.array(expected), abs=1e-11)
    for k, margin in enumerate(found.rewards.values()):
        column = [row[k] for row in expected]
        assert margin.minimum == pytest.approx(min(0, *column), abs=1e-11)
        inside = [value for i, value in enumerate(column) if i not in ends]
        assert margin.mean == pytest.approx(np.mean(inside), abs=1e-11)
        place = front.coefficients.index(margin.at)
        assert column[place] == pytest.approx(margin.minimum, abs=1e-11)
        assert margin.holds == (margin.minimum >= 0)


@given(arrays.arrays(float, (5, 2), elements=numbers), st.floats(0.1, 5), st.floats(-3, 3))
def test_the_verdict_ignores_shift_and_the_margins_follow_the_scale(means, scale, shift):
    before = reward_connectivity(table_front(means))
    after = reward_connectivity(table_front(scale * means + shift))
    assert after.margins == pytest.approx(scale * before.margins, abs=1e-9)


def test_equal_experts_are_connected_with_tolerance_zero():
    names = ("a", "b", "c")
    design = tuple(simplex_design(names, 20))
    front = RewardFront(names, ("r",), design, np.full((20, 1), 0.1))
    found = reward_connectivity(front, tolerance=0.0)
    assert found.holds
    assert found.above_chord
    assert not found.margins.any()


def test_a_concave_reward_is_connected_and_a_convex_one_is_not():
    line = np.linspace(0, 1, 11)
    for sign, holds in ((-1, True), (1, False)):
        rows = np.column_stack([sign * line**2, sign * (1 - line) ** 2])
        found = reward_connectivity(table_front(rows))
        assert found.holds is holds
        margin = found.rewards["first"]
        assert margin.minimum == pytest.approx(0 if holds else -0.25, abs=1e-12)
        assert margin.largest == pytest.approx(0.25 if holds else 0, abs=1e-12)
        if not holds:
            assert margin.at == {"first": 0.5, "second": 0.5}


def test_an_expert_reached_sooner_fails_the_hypothesis_and_not_the_chord():
    line = np.linspace(0, 1, 11)
    sooner = np.column_stack([line**2, 1 - line**2])  # along the chord, at another pace
    found = reward_connectivity(table_front(sooner))
    assert not found.holds
    assert found.above_chord
    assert found.chord == pytest.approx(np.zeros(11), abs=1e-12)


# Tolerance


def test_a_tolerance_of_your_own_is_compared_with_the_minimum():
    rows = [(0.0, 1.0), (0.4, 0.5), (1.0, 0.0)]
    assert not reward_connectivity(table_front(rows)).holds
    assert reward_connectivity(table_front(rows), tolerance=0.1).holds
    assert not reward_connectivity(table_front(rows), tolerance=0.0999).holds
    by_name = reward_connectivity(table_front(rows), tolerance={"first": 0.2, "second": 0.0})
    assert by_name.holds
    assert by_name.tolerance_from == "given"
    assert by_name.rewards["first"].tolerance == 0.2


def noisy(depth, items, seed=0):
    """Three points; in the middle the reward is ``depth`` below the chord on average, with noise of one."""
    values = np.zeros((3, 1, items))
    noise = np.random.default_rng(seed).normal(size=items)
    values[1, 0] = noise - noise.mean() - depth
    return _line(values)


def test_noise_of_the_items_widens_the_tolerance():
    # The margin in the middle has the standard error 1/20; its minimum with 0 is cut off at 0.
    found = reward_connectivity(noisy(0.04, 400))
    assert found.tolerance_from == "bootstrap"
    assert found.holds
    deep = reward_connectivity(noisy(0.3, 400))
    assert not deep.holds
    # One point between two experts: the quantile of one normal number that is exceeded in 5 %.
    assert deep.rewards["r0"].tolerance == pytest.approx(1.645 / 20, rel=0.12)
    assert not reward_connectivity(noisy(0.04, 40_000)).holds


def test_pure_noise_seldom_fails():
    """Eleven policies of the same mean and two rewards: the smallest of 18 margins is nearly always negative."""
    random = np.random.default_rng(11)
    shares = tuple({"a": i / 10, "b": 1 - i / 10} for i in range(11))
    failed = negative = 0
    for _ in range(100):
        front = RewardFront(("a", "b"), ("a", "b"), shares, values=random.normal(size=(11, 2, 64)))
        found = reward_connectivity(front, resamples=200)
        failed += not found.holds
        negative += min(margin.minimum for margin in found.rewards.values()) < 0
    assert negative > 90
    assert failed <= 12  # 5 expected; more than 12 in one of 1,000


def test_items_are_drawn_together_for_all_points():
    """Difficulty of an item that all points share cancels, so it does not widen the tolerance."""
    values = np.zeros((3, 1, 100))
    values[1] = -0.5
    easy = reward_connectivity(_line(values))
    hard = reward_connectivity(_line(values + 100 * np.random.default_rng(0).normal(size=100)))
    assert easy.rewards["r0"].tolerance == pytest.approx(0, abs=1e-9)
    assert hard.rewards["r0"].tolerance == pytest.approx(0, abs=1e-9)
    assert not hard.holds


def test_the_bootstrap_depends_on_its_seed_alone():
    front = noisy(0.3, 50)
    assert reward_connectivity(front).to_dict() == reward_connectivity(front).to_dict()
    assert reward_connectivity(front, seed=1).rewards != reward_connectivity(front).rewards
    assert reward_connectivity(front, resamples=10).rewards != reward_connectivity(front).rewards


def test_with_one_item_there_is_no_tolerance():
    found = reward_connectivity(_line(np.array([[[0.0]], [[-0.1]], [[0.0]]])))
    assert (found.rewards["r0"].tolerance, found.holds) == (0, False)


def test_rewards_that_were_not_trained_on_are_left_out_unless_named():
    front = RewardFront(
        ("a", "b"),
        ("a", "b", "other"),
        ({"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}),
        [(1, 0, 1), (0.6, 0.6, 0), (0, 1, 1)],
    )
    assert list(reward_connectivity(front).rewards) == ["a", "b"]
    assert reward_connectivity(front).holds
    assert not reward_connectivity(front, rewards=["other"]).holds
    assert not reward_connectivity(front, rewards=front.rewards).holds


def test_the_verdict_is_told_in_sentences():
    text = reward_connectivity(table_front(NEWS)).verdict()
    assert text.startswith("Linear mode connectivity holds")
    assert "first: smallest margin 0 at lambda = {first: 1, second: 0}, mean 0.051611" in text
    assert "no values per item" in text
    assert "on or above the chord" in text
    text = reward_connectivity(table_front([(0, 1), (0.4, 0.5), (1, 0)]), tolerance=0.05).verdict()
    assert text.startswith("Linear mode connectivity fails")
    assert "smallest margin -0.1 at lambda = {first: 0.5, second: 0.5}" in text
    assert "tolerance 0.05 (as given)" in text


# The chord


@given(
    st.integers(1, 4).flatmap(
        lambda rewards: st.tuples(*[arrays.arrays(float, rewards, elements=numbers)] * 3)
    )
)
def test_the_chord_margin_of_two_experts_is_the_best_on_a_grid(rows):
    point, first, second = rows
    (found,) = chord_margin([point], [first, second])
    expected = reference.chord_margin(point, first, second, steps=2000)
    slack = np.abs(first - second).max() / 2000
    assert expected - 1e-9 <= found <= expected + slack + 1e-9


@given(arrays.arrays(float, (4, 2), elements=numbers))
def test_the_chord_margin_of_three_experts_is_the_best_on_a_grid(rows):
    point, ends = rows[0], rows[1:]
    (found,) = chord_margin([point], ends)
    expected = reference.simplex_margin(point, ends.tolist())
    assert expected - 1e-6 <= found <= expected + np.ptp(ends, axis=0).max() / 30 + 1e-6


@given(arrays.arrays(float, (6, 2), elements=numbers))
def test_the_chord_is_weaker_than_the_hypothesis(means):
    found = reward_connectivity(three_experts(means))
    assert (found.chord >= found.margins.min(axis=1) - 1e-6).all()
    assert (found.chord[three_experts(means).ends()] >= -1e-9).all()


def test_a_third_expert_that_is_one_of_the_others_changes_nothing():
    points, ends = np.array(NEWS), np.array([NEWS[0], NEWS[-1]])
    three = chord_margin(points, np.vstack([ends, ends[0]]))
    assert three == pytest.approx(chord_margin(points, ends), abs=1e-7)
    assert chord_margin(points * 1e6, np.vstack([ends, ends[0]]) * 1e6) == pytest.approx(
        three * 1e6, rel=1e-6
    )
    assert chord_margin([(2.0, 3.0)], [(1.0, 1.0)]).tolist() == [1.0]


def test_without_scipy_three_experts_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install 'mirepoix\[analysis\]'"):
        chord_margin([(0, 0)], [(0, 1), (1, 0), (1, 1)])
    assert chord_margin([(0, 0)], [(0, 1), (1, 0)]).tolist() == [-0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chord_margin([(1, 2)], [(1, 2, 3)]), "ends: expected 2 rewards as in the points, got 3"),
        (lambda: chord_margin([(1, np.nan)], [(1, 2)]), "points: expected finite rewards"),
        (lambda: reward_connectivity(table_front(NEWS), tolerance=-1), "tolerance: expected numbers from 0"),
        (lambda: reward_connectivity(table_front(NEWS), tolerance={"first": 1}), "one number for each of"),
        (lambda: reward_connectivity(table_front(NEWS), rewards=["x"]), "the front has no 'x'"),
        (
            lambda: reward_connectivity(RewardFront(("a", "b"), ("a",), ({"a": 1, "b": 0},), [[1.0]])),
            "but 'b' is missing",
        ),
        (
            lambda: reward_connectivity(
                RewardFront(
                    ("a", "b"), ("a",), ({"a": 1, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 1}), [[1]] * 3
                )
            ),
            "coefficients of point 2: .* which sum to 2",
        ),
    ],
)
def test_what_has_no_margin_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
