import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.selection import best, greedy
from mirepoix.types import InputError
from mirepoix.weights import RunningAverage, average


def theta(value):
    return {"w": np.array([float(value)])}


class Scripted:
    """Returns the given scores in the order of the calls."""

    def __init__(self, *scores):
        self.scores, self.calls = list(scores), []

    def __call__(self, weights):
        self.calls.append(float(weights["w"][0]))
        return self.scores[len(self.calls) - 1]


def test_best_takes_the_highest_and_of_equal_ones_the_first():
    choice = best([theta(0), theta(1), theta(2)], Scripted(0.5, 0.9, 0.9))
    assert choice.kept == (1,)
    assert choice.order == (1, 2, 0)
    assert choice.scores == (0.9, 0.9, 0.5)
    assert choice.theta["w"][0] == 1


def test_best_with_known_scores_evaluates_nothing():
    score = Scripted()
    assert best([theta(0), theta(1)], score, member_scores=[0.1, 0.2]).kept == (1,)
    assert not score.calls


def test_nan_is_worse_than_any_score():
    assert best([theta(0), theta(1)], Scripted(float("nan"), -5.0)).kept == (1,)


def test_greedy_keeps_an_equal_score_and_drops_a_lower_one():
    members = [theta(0), theta(2), theta(4)]
    score = Scripted(0.80, 0.80, 0.79)
    choice = greedy(members, score, member_scores=[0.8, 0.7, 0.6])
    assert choice.kept == (0, 1)
    assert score.calls == [0, 1, 2]  # the means of {0}, {0, 2}, {0, 2, 4}
    assert choice.theta["w"][0] == 1


def test_greedy_strict_keeps_only_what_rises():
    choice = greedy(
        [theta(0), theta(2), theta(4)], Scripted(0.80, 0.80, 0.79), strict=True, member_scores=[3, 2, 1]
    )
    assert choice.kept == (0,)


def test_greedy_goes_from_the_best_member_down_and_ties_keep_their_order():
    score = Scripted(1, 2, 3, 4)
    choice = greedy([theta(i) for i in range(4)], score, member_scores=[0.5, 0.7, 0.7, 0.6])
    assert choice.order == (1, 2, 3, 0)
    assert choice.kept == (1, 2, 3, 0)


def test_greedy_skips_a_bad_member_and_still_tries_the_next():
    choice = greedy([theta(0), theta(100), theta(2)], Scripted(0.5, 0.1, 0.6), member_scores=[3, 2, 1])
    assert choice.kept == (0, 2)
    assert choice.theta["w"][0] == 1


def test_one_member_is_its_own_soup():
    choice = greedy([theta(3)], Scripted(0.2), member_scores=[0.2])
    assert choice.kept == (0,)
    assert choice.theta["w"][0] == 3


def test_a_score_that_is_nan_is_never_kept_after_the_first():
    choice = greedy([theta(0), theta(1)], Scripted(0.5, float("nan")), member_scores=[2, 1])
    assert choice.kept == (0,)


def test_no_member_is_an_error():
    for select in (best, greedy):
        with pytest.raises(InputError, match="at least one member"):
            select([], lambda weights: 0.0)


def test_wrong_number_of_scores_is_an_error():
    with pytest.raises(InputError, match=r"expected one per member \(2\), got 1"):
        greedy([theta(0), theta(1)], lambda weights: 0.0, member_scores=[1.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.booleans())
def test_greedy_equals_its_definition(values, strict):
    """Brute force: recompute the average of kept and candidate from nothing each time."""

    def score(weights):
        return -abs(float(weights["w"][0]) - 1.0)

    members = [theta(value) for value in values]
    order = sorted(range(len(values)), key=lambda i: -score(members[i]))
    kept = [order[0]]
    for i in order[1:]:
        now, then = (
            score(average([members[j] for j in kept])),
            score(average([members[j] for j in [*kept, i]])),
        )
        if then > now or (then == now and not strict):
            kept.append(i)
    choice = greedy(members, score, strict=strict)
    assert list(choice.kept) == kept
    assert choice.theta["w"] == pytest.approx(average([members[j] for j in kept])["w"], rel=1e-15)


def test_greedy_is_never_worse_than_the_best_member_on_its_own_score():
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.normal(size=(5, 3))
        goal = random.normal(size=3)
        members = [{"w": point} for point in points]

        def score(weights, goal=goal):
            return -float(np.sum((weights["w"] - goal) ** 2))

        choice = greedy(members, score)
        assert score(choice.theta) >= max(map(score, members)) - 1e-12
        assert all(a <= b for a, b in itertools.pairwise(s for s in np.maximum.accumulate(choice.scores)))


def test_running_average_is_average_bit_for_bit():
    random = np.random.default_rng(1)
    members = [{"w": random.normal(size=50).astype(np.float32), "n": np.array(i)} for i in (3, 3, 3)]
    running = RunningAverage()
    for count, member in enumerate(members, 1):
        before = running.weights() if running.count else None
        after = running.plus(member)
        if before:
            assert np.array_equal(running.weights()["w"], before["w"])  # left as it was
        running = after
        expected = average(members[:count])
        got = running.weights()
        assert np.array_equal(got["w"], expected["w"])
        assert got["w"].dtype == np.float32
        assert running.count == count


def test_running_average_names_the_member_that_does_not_fit():
    running = RunningAverage().plus({"w": np.zeros(2)})
    with pytest.raises(InputError, match="members 0 and 1 cannot be averaged: 'w' has shape"):
        running.plus({"w": np.zeros(3)})
    with pytest.raises(InputError, match="no member"):
        RunningAverage().weights()


def test_running_average_warns_of_different_dtypes_as_average_does():
    members = [{"w": np.ones(2, np.float32)}, {"w": np.ones(2)}]
    running = RunningAverage().plus(members[0]).plus(members[1])
    with pytest.warns(UserWarning, match="dtypes differ"):
        theta = running.weights()
    assert theta["w"].dtype == np.float64
