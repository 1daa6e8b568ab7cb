import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards import simplex_design, simplex_lattice, simplex_uniform
from mirepoix.rewards._simplex import check_coefficients
from mirepoix.types import InputError
from tests.reference import reward_simplex as reference

NAMES = ("a", "b", "c", "d", "e")


def rows(named, size):
    return np.array([[shares[name] for name in NAMES[:size]] for shares in named])


# Uniform


@pytest.mark.parametrize("size", [2, 3, 5])
def test_uniform_draws_have_the_moments_of_the_flat_dirichlet(size):
    count = 40_000
    drawn = rows(simplex_uniform(NAMES[:size], count, seed=1), size)
    variance = (size - 1) / (size**2 * (size + 1))
    assert drawn.mean(axis=0) == pytest.approx(1 / size, abs=4 * math.sqrt(variance / count))
    assert drawn.var(axis=0) == pytest.approx(variance, rel=0.03)
    covariance = -1 / (size**2 * (size + 1))
    assert np.cov(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(covariance, rel=0.05)


def test_with_two_experts_a_coefficient_is_uniform():
    drawn = np.sort(rows(simplex_uniform(["a", "b"], 5000, seed=3), 2)[:, 0])
    steps = np.arange(1, 5001) / 5000
    assert np.abs(drawn - steps).max() < 1.63 / math.sqrt(5000)  # Kolmogorov and Smirnov, one in a hundred


@given(st.integers(1, 5), st.integers(0, 20), st.integers(0, 5))
def test_every_draw_lies_on_the_simplex_and_later_draws_change_no_earlier_one(size, count, seed):
    names = NAMES[:size]
    drawn = simplex_uniform(names, count, seed)
    assert len(drawn) == count
    for shares in drawn:
        assert tuple(shares) == names
        assert check_coefficients(shares, names) == shares
    assert simplex_uniform(names, count + 3, seed)[:count] == drawn
    assert not count or simplex_uniform(names, count, seed + 1) != drawn or size == 1


# Lattice


@pytest.mark.parametrize(("size", "steps"), [(1, 4), (2, 1), (2, 10), (3, 1), (3, 4), (4, 3), (5, 2)])
def test_the_lattice_is_every_combination_of_counts_in_order(size, steps):
    found = [tuple(shares.values()) for shares in simplex_lattice(NAMES[:size], steps)]
    assert found == sorted(reference.lattice(size, steps))
    assert len(found) == math.comb(steps + size - 1, size - 1)


def test_two_experts_and_ten_steps_are_the_eleven_coefficients_of_the_figures():
    found = simplex_lattice(["first", "second"], 10)
    assert [shares["first"] for shares in found] == [i / 10 for i in range(11)]
    assert all(shares["first"] + shares["second"] == pytest.approx(1, abs=1e-15) for shares in found)


# Design


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_design_has_the_vertices_the_centre_and_then_draws(size):
    names = NAMES[:size]
    found = simplex_design(names, size + 6, seed=2)
    assert [shares[name] for shares, name in zip(found, names, strict=False)] == [1.0] * size
    assert list(found[size].values()) == [1 / size] * size
    assert found[size + 1 :] == simplex_uniform(names, 5, seed=2)
    assert set(Counter(tuple(shares.values()) for shares in found).values()) == {1}
    assert simplex_design(names, size + 9, seed=2)[: size + 6] == found


def test_one_expert_has_nothing_to_mix():
    assert simplex_design(["a"], 7) == [{"a": 1.0}]


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_uniform([], 3), "experts: expected at least one name, got none"),
        (lambda: simplex_uniform("ab", 3), "expected a list of names, got 'ab'"),
        (lambda: simplex_uniform(["a", "b", "a"], 3), "each name once, got 'a' twice"),
        (lambda: simplex_uniform(["a", ""], 3), "expected a list of names"),
        (lambda: simplex_uniform(["a"], -1), "count: expected 0 or more draws, got -1"),
        (lambda: simplex_lattice(["a"], 0), "steps: expected at least 1, got 0"),
        (lambda: simplex_design(["a", "b"], 2), "count: expected at least 3, for 2 experts alone"),
        (lambda: check_coefficients({"a": 1.0}, ["a", "b"]), "one number for each of 'a', 'b', got 'a'"),
        (lambda: check_coefficients({"a": 1, "b": 0, "c": 0}, ["a", "b"]), "got 'a', 'b', 'c'"),
        (lambda: check_coefficients({"a": 0.5, "b": 0.4}, ["a", "b"]), "sum to 0.9"),
        (lambda: check_coefficients({"a": 1.5, "b": -0.5}, ["a", "b"]), "in \\[0, 1\\], got 1.5 for 'a'"),
        (lambda: check_coefficients({"a": math.nan, "b": 1}, ["a", "b"]), "a finite number for 'a', got nan"),
        (lambda: check_coefficients({"a": True, "b": 0}, ["a", "b"]), "a finite number for 'a', got True"),
        (lambda: check_coefficients([1.0, 0.0], ["a", "b"]), "a mapping from name to number"),
    ],
)
def test_what_is_no_point_of_the_simplex_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_extrapolation_leaves_the_simplex_knowingly_and_still_sums_to_one():
    assert check_coefficients({"b": -0.5, "a": 1.5}, ["a", "b"], extrapolate=True) == {"a": 1.5, "b": -0.5}
    with pytest.raises(InputError, match="sum to 2"):
        check_coefficients({"a": 1.5, "b": 0.5}, ["a", "b"], extrapolate=True)
