import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirepoix.rewards import nondominated_probability, pareto_mask
from mirepoix.types import InputError
from tests.reference import pareto as reference

few = st.integers(0, 4).map(float)  # many ties
points = st.integers(1, 4).flatmap(
    lambda rewards: arrays.arrays(float, st.tuples(st.integers(1, 12), st.just(rewards)), elements=few)
)


@given(points, st.sampled_from([0.0, 1.0, 1.5]))
def test_the_mask_is_that_of_the_definition(table, eps):
    assert pareto_mask(table, eps).tolist() == reference.mask(table.tolist(), eps)


@given(arrays.arrays(float, st.tuples(st.integers(1, 30), st.integers(2, 3)), elements=st.floats(-1, 1)))
def test_so_it_is_for_numbers_that_hardly_tie(table):
    assert pareto_mask(table).tolist() == reference.mask(table.tolist())


def test_a_point_with_the_same_rounded_sum_is_dominated_too():
    assert pareto_mask([(1.0, 0.0, 0.0), (1.0, 1e-20, 0.0)]).tolist() == [False, True]
    assert pareto_mask([(1.0, 1e-20, 0.0), (1.0, 0.0, 0.0)]).tolist() == [True, False]
    assert pareto_mask([(0.0, 1.0), (-0.0, 1.0)]).tolist() == [True, False]  # equal: the first


def test_the_published_example():
    assert pareto_mask([(0.2, 0.9), (0.5, 0.6), (0.9, 0.1), (0.4, 0.5)]).tolist() == [True, True, True, False]


def test_differences_up_to_eps_are_ties():
    table = [(1.0, 0.5), (1.0005, 0.3), (0.2, 0.9)]
    assert pareto_mask(table).tolist() == [True, True, True]
    assert pareto_mask(table, eps=0.001).tolist() == [True, False, True]
    # The first of two that tie in all rewards, not the better one.
    assert pareto_mask([(1.0, 1.0), (1.0005, 1.0005)], eps=0.001).tolist() == [True, False]


def test_points_that_dominate_each_other_in_a_circle_are_not_all_dropped():
    circle = [(0.0, 0.0, 0.0), (-2.0, 1.0, 1.0), (-1.0, -1.0, 2.0)]  # each over the next, up to ties of 1
    assert pareto_mask(circle, eps=1.0).any()


@given(points, st.integers(0, 10))
def test_the_mask_ignores_scale_shift_and_order(table, seed):
    kept = pareto_mask(table)
    assert kept.any()
    assert pareto_mask(4 * table - 8).tolist() == kept.tolist()
    order = np.random.default_rng(seed).permutation(len(table))
    there = {tuple(row) for row in table[kept]}
    assert {tuple(row) for row in table[order][pareto_mask(table[order])]} == there
    again = table[kept]
    assert pareto_mask(again).all()


def test_ten_thousand_points_take_less_than_a_second():
    random = np.random.default_rng(0)
    for rewards in (2, 3):
        front = np.abs(random.normal(size=(10_000, rewards)))
        front /= np.linalg.norm(front, axis=1, keepdims=True)
        start = time.process_time()
        assert pareto_mask(front).all()
        assert time.process_time() - start < 1


# Probability


def test_where_two_points_trade_places_by_chance_they_share_the_probability():
    # Three items: the first point is better where the mean over the draws is positive, by symmetry half the time.
    values = np.zeros((2, 1, 3))
    values[0, 0] = [-1.0, 0.0, 1.0]
    found = nondominated_probability(values, resamples=4000, seed=1)
    # Of 27 draws, those with mean zero: 000 and the 6 orders of -1, 0, 1: both are undominated then.
    positive = (27 - 7) / 2 / 27
    assert found == pytest.approx([positive + 7 / 27] * 2, abs=4 * np.sqrt(0.25 / 4000))


def test_a_point_that_is_better_on_every_item_is_never_dominated():
    values = np.random.default_rng(0).normal(size=(4, 2, 50))
    values[2] = values.max(axis=0) + 0.1
    assert nondominated_probability(values, resamples=100).tolist() == [0, 0, 1, 0]


def test_equal_points_have_equal_probability():
    values = np.random.default_rng(0).normal(size=(5, 3, 37))
    values[4] = values[0]
    found = nondominated_probability(values, resamples=200)
    assert found[0] == found[4] > 0


def test_draws_depend_on_the_seed_alone():
    values = np.random.default_rng(0).normal(size=(5, 2, 20))
    assert np.array_equal(nondominated_probability(values, seed=3), nondominated_probability(values, seed=3))
    assert not np.array_equal(
        nondominated_probability(values, seed=3), nondominated_probability(values, seed=4)
    )


def test_a_wide_eps_lets_all_points_stay():
    values = np.random.default_rng(0).normal(size=(4, 2, 50))
    assert nondominated_probability(values, eps=100.0, resamples=20).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_mask([(1, 2), (np.nan, 3)]), "got nan in row 1, reward 0"),
        (lambda: pareto_mask([(1, np.inf)]), "got inf in row 0, reward 1"),
        (lambda: pareto_mask([]), "shape \\(points, rewards\\), got shape \\(0,\\)"),
        (lambda: pareto_mask([1.0, 2.0]), "got shape \\(2,\\)"),
        (lambda: pareto_mask([[1.0], [2.0, 3.0]]), "rows of equal length"),
        (lambda: pareto_mask([["x"]]), "expected numbers"),
        (lambda: pareto_mask([(1, 2)], eps=-1), "eps: expected 0 or a positive number, got -1"),
        (
            lambda: nondominated_probability([[1.0]]),
            "shape \\(points, rewards, items\\), got shape \\(1, 1\\)",
        ),
        (lambda: nondominated_probability([[[1.0, np.nan]]]), "got nan at point 0, reward 0, item 1"),
        (lambda: nondominated_probability([[[1.0]]], resamples=0), "resamples: expected at least 1, got 0"),
    ],
)
def test_what_is_no_front_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
