import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards import (
    RewardFront,
    cross_validate,
    grid_then_refine,
    lambda_equals_mu,
    lambda_quadratic,
    quadratic_optimum,
    simplex_lattice,
    simplex_uniform,
    suboptimality_bound,
)
from mirepoix.types import InputError
from tests.reference.quadratic_rewards import (
    Quadratic,
    best_mixture_of_two,
    best_point,
    mixed,
    preferred,
)


def random_rewards(count, dimensions, seed, *, diagonal=True):
    random = np.random.default_rng(seed)
    return [
        Quadratic(
            random.normal(size=dimensions),
            np.exp(random.normal(size=dimensions)) if diagonal else [math.exp(random.normal())] * dimensions,
            random.normal(),
        )
        for _ in range(count)
    ]


def table_of(rewards, names):
    return {
        name: {other: reward(own.best) for other, reward in zip(names, rewards, strict=True)}
        for name, own in zip(names, rewards, strict=True)
    }


# lambda = mu


def test_the_preference_is_taken_as_it_is():
    found = lambda_equals_mu({"x": 0.25, "y": 0.75})
    assert found.coefficients == {"x": 0.25, "y": 0.75}
    assert (found.method, found.notes) == ("lambda_equals_mu", ())


def test_experts_of_one_reward_share_its_weight_and_others_have_none():
    trained_on = {"a1": "x", "b": "y", "a2": "x", "c": "z"}
    found = lambda_equals_mu({"x": 0.6, "y": 0.4, "w": 0.0}, trained_on)
    assert found.coefficients == pytest.approx({"a1": 0.3, "b": 0.4, "a2": 0.3, "c": 0.0})


# Quadratic rewards


@given(st.integers(0, 500), st.floats(0, 1))
def test_for_two_experts_with_diagonal_hessians_the_closed_form_is_the_best_coefficient(seed, mu):
    rewards = random_rewards(2, 1 + seed % 10, seed)
    found = lambda_quadratic({"a": 1 - mu, "b": mu}, table_of(rewards, "ab"))
    assert found.method == "lambda_quadratic"
    assert found.coefficients["b"] == pytest.approx(best_mixture_of_two(rewards, [1 - mu, mu]), abs=1e-6)
    assert sum(found.coefficients.values()) == pytest.approx(1)
    assert not found.notes


@pytest.mark.parametrize("count", [2, 3, 5])
def test_with_hessians_of_one_number_the_coefficients_are_those_of_the_best_point(count):
    names = list("abcde"[:count])
    for seed in range(20):
        rewards = random_rewards(count, 8, seed, diagonal=False)
        (mu,) = simplex_uniform(names, 1, seed)
        distances = {
            a: {
                b: float(np.linalg.norm(np.subtract(p.best, q.best)))
                for b, q in zip(names, rewards, strict=True)
            }
            for a, p in zip(names, rewards, strict=True)
        }
        found = lambda_quadratic(mu, table_of(rewards, names), distances=distances)
        etas = {name: reward.etas[0] for name, reward in zip(names, rewards, strict=True)}
        assert found.curvatures == pytest.approx(etas)
        soup = mixed([reward.best for reward in rewards], [found.coefficients[name] for name in names])
        assert soup == pytest.approx(best_point(rewards, [mu[name] for name in names]), abs=1e-9)
        assert quadratic_optimum(mu, etas) == pytest.approx(found.coefficients)


def test_distances_that_are_not_known_are_taken_as_equal_and_it_says_so():
    corners = [Quadratic(np.eye(3)[i], [eta] * 3) for i, eta in enumerate((1.0, 2.0, 5.0))]  # all equally far
    mu = {"a": 0.2, "b": 0.3, "c": 0.5}
    found = lambda_quadratic(mu, table_of(corners, "abc"))
    assert "taken as equal" in found.notes[0]
    assert found.coefficients == pytest.approx(quadratic_optimum(mu, {"a": 1.0, "b": 2.0, "c": 5.0}))
    assert not lambda_quadratic({"a": 0.5, "b": 0.5}, table_of(corners[:2], "ab")).notes


def test_least_squares_weighs_far_experts_more():
    # R_a falls by 1 at distance 1 and by 8 at distance 2, where eta d^2 would be 1 and 4: eta = (1 + 32) / 17.
    table = {"a": {"a": 8, "b": 0, "c": 0}, "b": {"a": 7, "b": 1, "c": 0}, "c": {"a": 0, "b": 0, "c": 1}}
    ones = {"a": 1.0, "b": 1.0, "c": 2.0}
    distances = {"a": ones, "b": {"a": 1.0, "c": 1.0}, "c": {"a": 1.0, "b": 1.0}}
    mu = {"a": 0.5, "b": 0.25, "c": 0.25}
    assert lambda_quadratic(mu, table, distances=distances).curvatures["a"] == pytest.approx(33 / 17)


def test_an_expert_that_is_not_the_best_in_its_own_reward_falls_back_and_says_so():
    table = {"first": {"x": 0.5, "y": 0.0}, "second": {"x": 0.7, "y": 1.0}}
    found = lambda_quadratic({"x": 0.3, "y": 0.7}, table, trained_on={"first": "x", "second": "y"})
    assert found.method == "lambda_equals_mu"
    assert found.coefficients == {"first": 0.3, "second": 0.7}
    assert "'first' is not better than the others in its own reward 'x'" in found.notes[0]


def test_a_preference_for_one_reward_alone_takes_its_expert():
    table = table_of(random_rewards(2, 4, 0), "ab")
    assert lambda_quadratic({"a": 1, "b": 0}, table).coefficients == {"a": 1, "b": 0}
    assert lambda_quadratic({"a": 1.0}, {"a": {"a": 3.0}}).coefficients == {"a": 1}


def test_one_curvature_per_parameter_reaches_the_best_point_of_all():
    rewards = random_rewards(3, 12, 4)
    mu = {"a": 0.2, "b": 0.3, "c": 0.5}
    found = quadratic_optimum(mu, {name: reward.etas for name, reward in zip("abc", rewards, strict=True)})
    soup = sum(found[name] * np.array(reward.best) for name, reward in zip("abc", rewards, strict=True))
    assert soup == pytest.approx(best_point(rewards, list(mu.values())))
    assert sum(found.values()) == pytest.approx(np.ones(12))
    assert min(share.min() for share in found.values()) >= 0


# The bound


def test_the_bound_holds_and_is_nearly_reached_on_random_quadratics():
    random = np.random.default_rng(0)
    closest = 0.0
    for seed in range(2000):
        rewards = random_rewards(2, int(random.integers(1, 6)), seed)
        mu = float(random.random())
        first, second = rewards
        delta_1, delta_2 = first(first.best) - first(second.best), second(second.best) - second(first.best)
        ratio = max(max(a / b, b / a) for a, b in zip(first.etas, second.etas, strict=True))
        share = mu * delta_2 / ((1 - mu) * delta_1 + mu * delta_2)
        weights = [1 - mu, mu]
        soup = preferred(rewards, weights, mixed([first.best, second.best], [1 - share, share]))
        loss = preferred(rewards, weights, best_point(rewards, weights)) - soup
        bound = suboptimality_bound(mu, ratio, delta_1, delta_2)
        assert -1e-9 <= loss <= bound + 1e-9
        closest = max(closest, loss / bound if bound > 1e-9 else 0)
    assert 0.9 < closest <= 1 + 1e-9


def test_the_bound_of_the_figure():
    assert suboptimality_bound(0.5, 2) == pytest.approx(1 / 36)
    assert suboptimality_bound(0.5, 10) == pytest.approx(0.1674, abs=5e-5)
    for mu in (0.1, 0.5, 0.8):
        both = mu * (1 - mu)
        for ratio in (2, 10):  # the form for equal deltas, equation C.10
            simple = both**2 * (ratio - 1) ** 2 / (both * (ratio - 1) ** 2 + ratio) * 3.0
            assert suboptimality_bound(mu, ratio, 3.0, 3.0) == pytest.approx(simple)


@given(st.floats(0, 1), st.floats(1, 50), st.floats(0, 1), st.floats(0.1, 10))
def test_the_bound_is_symmetric_in_the_experts_and_zero_where_it_must_be(mu, ratio, place, scale):
    delta = ratio ** (2 * place - 1)
    found = suboptimality_bound(mu, ratio, delta, 1.0)
    assert found >= 0
    assert suboptimality_bound(1 - mu, ratio, 1.0, delta) == pytest.approx(found, abs=1e-12)
    assert suboptimality_bound(mu, ratio, scale * delta, scale) == pytest.approx(scale * found, abs=1e-9)
    assert (
        suboptimality_bound(mu, 1)
        == suboptimality_bound(0, ratio, delta)
        == suboptimality_bound(1, ratio)
        == 0
    )


# Cross-validation


def noisy_front(items, seed=0, tops=(0.0, 0.7, 1.0, 0.98, 0.0)):
    """On a line of two experts; every reward at point i is tops[i] plus noise of one, shared in part."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(len(tops), 2, items)) + random.normal(size=items)
    values = np.array(tops)[:, None, None] + noise
    last = len(tops) - 1
    return RewardFront(
        ("a", "b"),
        ("a", "b"),
        tuple({"a": 1 - i / last, "b": i / last} for i in range(last + 1)),
        values=values,
    )


def test_the_best_point_is_found_where_items_are_many():
    found = cross_validate(noisy_front(20_000), {"a": 0.5, "b": 0.5})
    assert found.best == found.coefficients == {"a": 0.5, "b": 0.5}
    assert found.means == pytest.approx([0, 0.7, 1.0, 0.98, 0], abs=0.05)
    assert found.standard_errors == pytest.approx(math.sqrt(1.5 / 20_000), rel=0.05)
    assert all(fold.coefficients == found.best for fold in found.folds)
    assert found.held_out == pytest.approx(1.0, abs=0.05)


def test_of_points_within_one_standard_error_the_one_nearest_to_the_preference_is_taken():
    front = noisy_front(400)
    wanted = cross_validate(front, {"a": 0.25, "b": 0.75})
    scores = 0.25 * front.values[:, 0] + 0.75 * front.values[:, 1]
    means, best = scores.mean(axis=1), int(scores.mean(axis=1).argmax())
    limit = means[best] - scores[best].std(ddof=1) / math.sqrt(400)
    allowed = [i for i in range(5) if means[i] >= limit]
    assert len(allowed) > 1
    nearest = min(allowed, key=lambda i: abs(front.coefficients[i]["b"] - 0.75))
    assert wanted.coefficients == front.coefficients[nearest]
    assert wanted.coefficients == {"a": 0.25, "b": 0.75}


def test_every_item_is_held_out_once_and_no_choice_has_seen_it():
    front = noisy_front(23, tops=(0.0, 0.0, 0.0))
    found = cross_validate(front, {"a": 0.5, "b": 0.5}, folds=4, seed=2)
    assert sorted(fold.items for fold in found.folds) == [5, 6, 6, 6]
    weighted = sum(fold.items * fold.held_out for fold in found.folds) / 23
    assert found.held_out == pytest.approx(weighted)
    scores = front.values.mean(axis=1)
    for fold in found.folds:  # sums of the two parts make the whole, so the parts are apart
        row = front.coefficients.index(fold.coefficients)
        whole = fold.items * fold.held_out + (23 - fold.items) * fold.chosen_by
        assert whole == pytest.approx(scores[row].sum())


def test_choosing_on_noise_promises_more_than_it_keeps():
    gaps = []
    for seed in range(40):
        front = noisy_front(30, seed, tops=(0.0,) * 9)
        found = cross_validate(front, {"a": 0.5, "b": 0.5}, seed=seed)
        gaps.append(np.mean([fold.chosen_by - fold.held_out for fold in found.folds]))
    assert np.mean(gaps) > 0


def test_a_user_may_have_a_reward_that_is_not_linear():
    front = noisy_front(5000)

    def worst(values):
        assert list(values) == ["a", "b"]
        return np.minimum(values["a"], values["b"])

    found = cross_validate(front, {"a": 0.5, "b": 0.5}, user_reward=worst)
    assert found.means == pytest.approx(front.values.min(axis=1).mean(axis=1))


def test_folds_depend_on_the_seed_alone():
    front = noisy_front(40)
    one, two = (cross_validate(front, {"a": 0.5, "b": 0.5}, seed=7) for _ in range(2))
    assert one.folds == two.folds
    assert cross_validate(front, {"a": 0.5, "b": 0.5}, seed=8).folds != one.folds


# Grid, then golden section


@given(st.floats(0, 1), st.integers(3, 15))
def test_the_top_of_a_parabola_is_found_to_the_width(top, points):
    calls = []

    def evaluate(shares):
        calls.append(shares["b"])
        assert shares["a"] == pytest.approx(1 - shares["b"])
        return -((shares["b"] - top) ** 2)

    found = grid_then_refine(evaluate, ["a", "b"], points=points, width=1e-4)
    assert found.coefficients["b"] == pytest.approx(top, abs=1.1e-4)
    assert found.bracket[0] <= found.coefficients["b"] <= found.bracket[1]
    assert found.bracket[1] - found.bracket[0] <= 1e-4 or found.stopped_by == "noise"
    assert len(calls) == len(set(calls)) == len(found.evaluations)
    assert found.value == max(found.evaluations.values())
    # A golden section needs log(cells / width) / log(golden ratio) evaluations beyond the grid.
    assert len(calls) <= points + 2 + math.log(2 / (points - 1) / 1e-4) / math.log((1 + math.sqrt(5)) / 2)


def test_the_search_stops_where_noise_hides_the_difference():
    calls = []

    def evaluate(shares):
        calls.append(shares["b"])
        noise = np.random.default_rng(len(calls)).normal(size=100)  # other noise each time
        return -((shares["b"] - 0.4) ** 2) + noise

    found = grid_then_refine(evaluate, ["a", "b"], width=1e-9)
    assert found.stopped_by == "noise"
    assert len(calls) < 20
    assert found.standard_error == pytest.approx(0.1, rel=0.3)


def test_shared_noise_cancels_and_does_not_stop_the_search():
    noise = np.random.default_rng(0).normal(size=100)
    found = grid_then_refine(lambda shares: -((shares["b"] - 0.43) ** 2) + noise, ["a", "b"], width=1e-3)
    assert found.coefficients["b"] == pytest.approx(0.43, abs=1e-3)


def test_a_given_noise_stops_the_search_early():
    def evaluate(shares):
        return -((shares["b"] - 0.43) ** 2)

    found = grid_then_refine(evaluate, ["a", "b"], noise=0.001)
    assert found.stopped_by == "noise"
    assert found.value >= -0.001
    assert len(found.evaluations) < len(grid_then_refine(evaluate, ["a", "b"]).evaluations)


def test_a_flat_reward_ends_at_once_and_an_end_may_be_the_best():
    assert len(grid_then_refine(lambda shares: 1.0, ["a", "b"], points=5).evaluations) == 5
    found = grid_then_refine(lambda shares: shares["a"], ["a", "b"])
    assert found.coefficients == {"a": 1.0, "b": 0.0}
    assert found.standard_error is None


FRONT = noisy_front(6)
TABLE = {"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.0, "b": 1.0}}
EVEN = {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lambda_equals_mu({"x": 0.5, "y": 0.4}), "preference: expected numbers on the simplex"),
        (
            lambda: lambda_equals_mu({"x": 1.0}, {"a": "y"}),
            "'x' has a weight of 1, and no expert was trained on it",
        ),
        (
            lambda: lambda_quadratic(EVEN, {"a": {"a": 1.0}, "b": {"a": 0.0}}),
            "the rewards 'a', 'b' of expert 'a'",
        ),
        (
            lambda: lambda_quadratic({"a": 1.0}, TABLE),
            "one expert for each of the rewards 'a' in the preference",
        ),
        (
            lambda: lambda_quadratic(EVEN, TABLE, trained_on={"a": "a"}),
            "'b' \\(trained on 'no reward'\\)",
        ),
        (
            lambda: lambda_quadratic(EVEN, {"a": {"a": math.nan, "b": 0}, "b": {"a": 0, "b": 1}}),
            "table of 'a': expected a finite number for 'a'",
        ),
        (
            lambda: lambda_quadratic(EVEN, TABLE, distances={"a": {}}),
            "distances: expected a number for 'a' and 'b'",
        ),
        (
            lambda: lambda_quadratic(EVEN, TABLE, distances={"a": {"b": 0.0}, "b": {"a": 0.0}}),
            "a positive number for 'a' and 'b', got 0.0",
        ),
        (
            lambda: quadratic_optimum(EVEN, {"a": 1.0, "b": 0.0}),
            "positive numbers of one shape, got 0.0 for 'b'",
        ),
        (lambda: quadratic_optimum(EVEN, {"a": [1.0], "b": 1.0}), "positive numbers of one shape"),
        (lambda: quadratic_optimum(EVEN, {"a": 1.0}), "one number for each of 'a'"),
        (lambda: suboptimality_bound(1.5, 2), "mu: expected a number in \\[0, 1\\], got 1.5"),
        (lambda: suboptimality_bound(0.5, 0.9), "ratio: expected a number from 1, got 0.9"),
        (lambda: suboptimality_bound(0.5, 2, 0.0), "delta_1: expected a positive number"),
        (
            lambda: suboptimality_bound(0.5, 2, 1.0, 5.0),
            "ratio: expected at least 5, the ratio of the deltas, got 2",
        ),
        (
            lambda: cross_validate(RewardFront(("a",), ("a",), ({"a": 1},), [[1.0]]), {"a": 1.0}),
            "a front with values per item, got means only",
        ),
        (lambda: cross_validate(FRONT, EVEN, folds=1), "got 1 folds of 6 items"),
        (lambda: cross_validate(FRONT, EVEN, folds=7), "got 7 folds of 6 items"),
        (lambda: cross_validate(FRONT, {"a": 0.5, "c": 0.5}), "no expert was trained on it"),
        (lambda: cross_validate(FRONT, EVEN, user_reward=lambda values: 1.0), "got shape \\(\\)"),
        (
            lambda: cross_validate(FRONT, EVEN, user_reward=lambda values: values["a"] * math.nan),
            "user_reward: expected finite values",
        ),
        (lambda: grid_then_refine(len, ["a"]), "experts: expected two, got 1"),
        (lambda: grid_then_refine(len, ["a", "b"], points=2), "points: expected at least 3, got 2"),
        (lambda: grid_then_refine(len, ["a", "b"], width=0), "width: expected a positive number"),
        (lambda: grid_then_refine(len, ["a", "b"], noise=-1), "noise: expected a number from 0"),
        (
            lambda: grid_then_refine(lambda shares: math.nan, ["a", "b"]),
            "evaluate: expected a finite number, .* at {'a': 1.0, 'b': 0.0}, got nan",
        ),
        (
            lambda: grid_then_refine(lambda shares: [1.0] * (2 + (shares["b"] > 0)), ["a", "b"]),
            "one per item as before, at {'a': 0.9, 'b': 0.1}",
        ),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_lattice_goes_into_a_front_and_out_of_it():
    names = ("a", "b", "c")
    lattice = simplex_lattice(names, 3)
    front = RewardFront(
        names, names, tuple(lattice), [[shares[name] for name in names] for shares in lattice]
    )
    assert front.best(lambda_equals_mu({"a": 0, "b": 0, "c": 1}).coefficients).coefficients["c"] == 1
