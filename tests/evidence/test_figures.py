import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.bootstrap import bootstrap
from mirepoix.diversity import q_diversity, ratio_error
from mirepoix.evidence import _figures as module
from mirepoix.evidence._figures import (
    accuracy_against_members,
    accuracy_against_share,
    accuracy_against_tasks,
    gain_against_diversity,
    interpolation_curve,
)
from mirepoix.types import InputError

GOAL = np.array([0.3, -0.2, 0.1, 0.5])


def world(count, seed=0, center=0.0):
    """Members around a centre; each is a point, which is all that the score looks at."""
    points = center + np.random.default_rng(seed).normal(size=(count, 4))
    return [{"w": point} for point in points]


def quadratic(theta):
    """One minus the squared distance to the goal."""
    return 1 - float(np.sum((theta["w"] - GOAL) ** 2))


class Counted:
    """A score that remembers what it was asked for, up to rounding."""

    def __init__(self, score=quadratic):
        self.score, self.seen = score, Counter()

    def __call__(self, theta):
        self.seen[tuple(np.round(theta["w"], 9))] += 1
        return self.score(theta)


def closed_form(members, m):
    """The mean of the quadratic over all subsets of m: the variance of a mean without replacement."""
    points = np.stack([theta["w"] for theta in members])
    count, middle = len(points), points.mean(0)
    variance = float(np.sum((points - middle) ** 2)) / count
    shrunk = variance / m * (count - m) / (count - 1)
    return 1 - float(np.sum((middle - GOAL) ** 2)) - shrunk


def means(points):
    return [point["mean"] for point in points]


# Accuracy against the number of members.


def test_over_all_subsets_the_curve_is_the_variance_divided_by_the_number_of_members():
    members = world(7)
    found = accuracy_against_members(members, quadratic, subsets=35)
    assert means(found["runs"]) == pytest.approx([closed_form(members, m) for m in range(1, 8)], abs=1e-12)
    assert [point["subsets"] for point in found["runs"]] == [math.comb(7, m) for m in range(1, 8)]
    assert found["snapshots"] is None
    assert found["ensemble"] is None


def test_over_random_subsets_the_curve_is_the_same_within_its_standard_error():
    members = world(16, seed=1)
    for point in accuracy_against_members(members, quadratic, subsets=200, seed=3)["runs"]:
        if point["error"] is not None:
            assert abs(point["mean"] - closed_form(members, point["members"])) <= 4 * point["error"]


def test_mean_and_standard_error_are_those_of_the_subsets():
    members = world(4)
    found = accuracy_against_members(members, quadratic, sizes=[2])
    values = [
        quadratic({"w": (members[i]["w"] + members[j]["w"]) / 2})
        for i, j in itertools.combinations(range(4), 2)
    ]
    (point,) = found["runs"]
    assert point["members"] == 2
    assert point["subsets"] == 6
    assert point["mean"] == pytest.approx(np.mean(values))
    assert point["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(6))


def test_a_single_subset_has_no_standard_error():
    found = accuracy_against_members(world(3), quadratic)
    assert found["runs"][-1]["error"] is None
    assert found["runs"][-1]["subsets"] == 1


def test_snapshots_of_one_run_are_a_curve_of_their_own_length():
    members, snapshots = world(5), world(3, seed=9)
    found = accuracy_against_members(members, quadratic, snapshots=snapshots)
    assert means(found["snapshots"]) == pytest.approx([closed_form(snapshots, m) for m in (1, 2, 3)])
    assert len(found["runs"]) == 5
    longer = accuracy_against_members(snapshots, quadratic, snapshots=members, sizes=[2, 5])
    assert [point["members"] for point in longer["runs"]] == [2]
    assert [point["members"] for point in longer["snapshots"]] == [2, 5]


def test_ranked_members_are_averaged_from_the_best_on():
    members = sorted(world(5), key=quadratic, reverse=True)
    found = accuracy_against_members(members, quadratic, ranked=True)
    expected = [quadratic({"w": np.mean([theta["w"] for theta in members[:m]], 0)}) for m in range(1, 6)]
    assert means(found["runs"]) == pytest.approx(expected)
    assert {point["subsets"] for point in found["runs"]} == {1}


def test_where_predictions_are_linear_in_weights_the_ensemble_is_the_average():
    random = np.random.default_rng(4)
    images, labels = random.normal(size=(60, 4)), torch.as_tensor(random.integers(3, size=60))
    members = [{"w": random.normal(size=(4, 3))} for _ in range(6)]
    logits = torch.as_tensor(np.stack([images @ theta["w"] for theta in members]))

    def score(theta):
        return float(np.mean((images @ theta["w"]).argmax(1) == labels.numpy()))

    # 5 of 15 or 20 subsets: equal curves mean equal subsets.
    found = accuracy_against_members(members, score, logits=logits, labels=labels, subsets=5)
    for average, ensemble in zip(found["runs"], found["ensemble"], strict=True):
        assert ensemble == pytest.approx(average)
    assert means(found["runs"])[0] == pytest.approx(np.mean([score(theta) for theta in members]), abs=0.2)


def test_every_average_is_scored_once():
    for make in (
        lambda score: accuracy_against_members(world(7), score, snapshots=world(4, seed=5), subsets=9),
        lambda score: gain_against_diversity(world(7), score, right(7), subsets=12),
        lambda score: accuracy_against_share(world(5), world(6, seed=5), score, members=4, subsets=11),
        lambda score: accuracy_against_tasks(
            {"a": world(6), "b": world(6, seed=5), "c": world(7, seed=6)}, score, members=5, subsets=8
        ),
    ):
        score = Counted()
        make(score)
        assert len(score.seen) > 10
        assert max(score.seen.values()) == 1


def test_the_seed_decides_and_inputs_are_untouched():
    members = world(12)
    before = [theta["w"].copy() for theta in members]
    first, again, other = (
        accuracy_against_members(members, quadratic, subsets=5, seed=seed)["runs"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[-1] == other[-1]
    assert all(np.array_equal(theta["w"], old) for theta, old in zip(members, before, strict=True))


# Gain against diversity.


def right(members, samples=80, seed=0):
    """Who is right on what: harder and easier samples, and members of their own."""
    return torch.as_tensor(np.random.default_rng(seed).random((members, samples)) < 0.7)


def test_dots_are_diversity_and_gain_over_the_mean_member():
    members, correct = world(4), right(4)
    (found,) = gain_against_diversity(members, quadratic, correct, sizes=[3])["sizes"]
    subsets = list(itertools.combinations(range(4), 3))
    assert found["diversity"] == pytest.approx([float(ratio_error(correct[list(s)])) for s in subsets])
    expected = [
        quadratic({"w": np.mean([members[i]["w"] for i in s], 0)})
        - np.mean([quadratic(members[i]) for i in s])
        for s in subsets
    ]
    assert found["gain"] == pytest.approx(expected)
    assert (found["subsets"], found["left_out"]) == (4, 0)
    assert found["mean_gain"] == pytest.approx(np.mean(expected))
    assert found["gain_error"] == pytest.approx(np.std(expected, ddof=1) / 2)


def test_a_line_is_that_of_polyfit():
    found = gain_against_diversity(world(9), quadratic, right(9), sizes=[2, 4], subsets=30, seed=2)
    for size in found["sizes"]:
        x, y = np.array(size["diversity"]), np.array(size["gain"])
        # polyfit's covariance is scaled by the residuals over n - 2, as the standard error of the slope is
        (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
        assert size["slope"] == pytest.approx(slope)
        assert size["intercept"] == pytest.approx(intercept)
        assert size["slope_error"] == pytest.approx(math.sqrt(covariance[0, 0]))
        assert size["r"] == pytest.approx(np.corrcoef(x, y)[0, 1])


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_line_through_points_of_a_line_is_found(slope, intercept):
    x = np.array([0.1, 0.5, 0.7, 2.0])
    found = module._line(x, slope * x + intercept)
    assert found["slope"] == pytest.approx(slope, abs=1e-9)
    assert found["intercept"] == pytest.approx(intercept, abs=1e-9)
    assert found["slope_error"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_dots_that_do_not_determine_a_line_have_none(x, y):
    assert set(module._line(np.array(x), np.array(y)).values()) == {None}


def test_two_dots_have_no_slope_and_a_flat_line_no_correlation():
    two = module._line(np.array([0.0, 2.0]), np.array([1.0, 5.0]))
    assert set(two.values()) == {None}
    flat = module._line(np.array([0.0, 1.0, 2.0]), np.ones(3))
    assert (flat["slope"], flat["slope_error"], flat["r"]) == (0, 0, None)


def test_diversities_that_are_not_finite_are_left_out_counted_and_not_scored():
    # Members 0 and 1 share no error: infinite. Member 3 never errs: infinite with 0 to 2, NaN with nobody here.
    correct = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    score = Counted()
    (found,) = gain_against_diversity(world(4), score, correct, sizes=[2])["sizes"]
    assert (found["subsets"], found["left_out"]) == (2, 4)  # (0, 2) and (1, 2)
    assert found["diversity"] == [2.0, 1.0]
    assert len(score.seen) == 3 + 2
    never = torch.ones(3, 5, dtype=torch.bool)
    (nothing,) = gain_against_diversity(world(3), quadratic, never)["sizes"]
    assert (nothing["subsets"], nothing["left_out"], nothing["mean_gain"], nothing["slope"]) == (
        0,
        3,
        None,
        None,
    )
    assert json.loads(json.dumps(nothing, allow_nan=False)) == nothing


def test_another_measure_is_named_and_used():
    correct = right(5)
    found = gain_against_diversity(world(5), quadratic, correct, measure=q_diversity)
    assert found["measure"] == "q_diversity"
    assert [size["members"] for size in found["sizes"]] == [2, 3, 4]
    assert found["sizes"][0]["diversity"][0] == pytest.approx(float(q_diversity(correct[:2])))


def test_by_default_sizes_are_those_of_the_thesis():
    sizes = gain_against_diversity(world(12), quadratic, right(12), subsets=2)["sizes"]
    assert [size["members"] for size in sizes] == list(range(2, 10))


# How sure the slope is, and other gains and diversities.


def test_r_squared_is_the_share_that_the_line_explains():
    for size in gain_against_diversity(world(9), quadratic, right(9), sizes=[2, 4], subsets=30)["sizes"]:
        x, y = np.array(size["diversity"]), np.array(size["gain"])
        left = np.sum((y - size["slope"] * x - size["intercept"]) ** 2)
        assert size["r_squared"] == pytest.approx(1 - left / np.sum((y - y.mean()) ** 2))


def shared_noise(random, members=20, m=3, subsets=60, slope=2.0):
    """Dots whose diversity and whose noise both come from their members, so that dots with a common member agree."""
    own, noise = random.normal(size=members), random.normal(size=members)
    chosen = module._ways([range(members)], [(m,)], subsets, random)
    x = np.array([own[list(s)].mean() for s in chosen])
    y = slope * x + np.array([noise[list(s)].mean() for s in chosen])
    return x, y, chosen


def test_the_interval_of_runs_holds_the_slope_where_the_standard_error_of_dots_does_not():
    random = np.random.default_rng(0)
    held = {"runs": 0, "dots": 0}
    worlds = 150
    for _ in range(worlds):
        x, y, chosen = shared_noise(random)
        low, high = module._slope_interval(x, y, chosen, np.arange(20), 200, 0)
        held["runs"] += low <= 2 <= high
        line = module._line(x, y)
        held["dots"] += abs(line["slope"] - 2) <= 1.96 * line["slope_error"]
    # 95 % were right, and dots promise too much; the standard error of a share is 0.02 and 0.04.
    assert held["runs"] / worlds > 0.9
    assert held["dots"] / worlds < 0.8


def test_where_dots_have_one_run_each_it_is_the_bootstrap_of_runs():
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(80), 3)
    chosen = [(3 * run + i, 3 * run + j) for run in range(80) for i, j in ((0, 1), (0, 2), (1, 2))]
    shift = np.repeat(random.normal(size=80), 3)
    x = np.repeat(random.normal(size=80), 3) + 0.3 * random.normal(size=240)
    y = 1.5 * x + shift + 0.3 * random.normal(size=240)
    low, high = module._slope_interval(x, y, chosen, clusters, 2000, 0)
    slopes = []
    for _ in range(2000):
        drawn = random.integers(80, size=80)
        rows = np.concatenate([np.arange(3 * run, 3 * run + 3) for run in drawn])
        slopes.append(module._line(x[rows], y[rows])["slope"])
    expected = np.quantile(slopes, [0.025, 0.975])
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.12)
    assert (low + high) / 2 == pytest.approx(expected.mean(), abs=0.1 * (high - low))


def test_for_few_runs_it_is_its_formula_by_loops():
    random = np.random.default_rng(2)
    chosen = list(itertools.combinations(range(5), 2))
    x, y = random.normal(size=10), random.normal(size=10)
    slope = np.polyfit(x, y, 1)[0]
    without = []
    for run in range(5):
        kept = [i for i, subset in enumerate(chosen) if run not in subset]
        without.append(np.polyfit(x[kept], y[kept], 1)[0])

    def drawn_slope(drawn):
        return slope + 4 / 5 * sum((list(drawn).count(run) - 1) * (slope - without[run]) for run in range(5))

    (expected,) = bootstrap(drawn_slope, 5, resamples=50, seed=7)
    found = module._slope_interval(x, y, chosen, np.arange(5), 50, 7)
    assert found == pytest.approx([expected.low, expected.high])


def test_intervals_lie_around_the_slope_and_runs_are_counted():
    found = gain_against_diversity(
        world(8), quadratic, right(8), sizes=[2, 3], runs="aabbccdd", resamples=300
    )
    assert (found["runs"], found["resamples"], found["combined"]) == (4, 300, "average")
    for size in found["sizes"]:
        low, high = size["slope_interval"]
        assert low < size["slope"] < high
    again = gain_against_diversity(
        world(8), quadratic, right(8), sizes=[2, 3], runs="aabbccdd", resamples=300
    )
    assert found == again
    alone = gain_against_diversity(world(8), quadratic, right(8), sizes=[2, 3], resamples=300)
    assert alone["runs"] == 8
    assert alone["sizes"][0]["slope"] == found["sizes"][0]["slope"]
    assert alone["sizes"][0]["slope_interval"] != found["sizes"][0]["slope_interval"]


def test_without_resamples_or_with_one_run_there_is_no_interval():
    for options in ({"resamples": 0}, {"runs": [1] * 6}):
        for size in gain_against_diversity(world(6), quadratic, right(6), sizes=[2], **options)["sizes"]:
            assert size["slope"] is not None
            assert size["slope_interval"] is None


def test_a_matrix_of_pairs_is_averaged_over_pairs():
    members = world(6)
    matrix = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    found = gain_against_diversity(members, quadratic, pairs=matrix, sizes=[3], name="feature diversity")
    expected = [
        np.mean([float(matrix[i, j]) for i, j in itertools.combinations(s, 2)])
        for s in itertools.combinations(range(6), 3)
    ]
    assert found["measure"] == "feature diversity"
    assert found["sizes"][0]["diversity"] == pytest.approx(expected)
    assert gain_against_diversity(members, quadratic, pairs=matrix, sizes=[3])["measure"] == "diversity"


def test_for_a_quadratic_the_gain_is_the_squared_distance_times_m_minus_one_over_two_m():
    members = world(9)
    points = np.stack([theta["w"] for theta in members])
    apart = ((points[:, None] - points[None]) ** 2).sum(-1)
    found = gain_against_diversity(members, quadratic, pairs=torch.as_tensor(apart), subsets=40)
    # Of a variance around the mean, the mean over pairs of the squared distances is 2 M / (M - 1) times.
    for size in found["sizes"]:
        m = size["members"]
        assert size["slope"] == pytest.approx((m - 1) / (2 * m))
        assert size["intercept"] == pytest.approx(0, abs=1e-12)
        assert size["r_squared"] == pytest.approx(1)
        if m < 8:
            assert size["slope_interval"] == pytest.approx([(m - 1) / (2 * m)] * 2)
        else:  # without one of nine members there is a single dot
            assert size["slope_interval"] is None


def test_ensembles_gain_by_their_logits_and_no_weights_are_scored():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (90,), generator=random)
    logits = torch.nn.functional.one_hot(labels, 3) + torch.randn(5, 90, 3, generator=random)
    correct = logits.argmax(-1) == labels

    def never(theta):
        raise AssertionError

    found = gain_against_diversity(
        world(5), never, correct, combined="ensemble", logits=logits, labels=labels, sizes=[2, 4]
    )
    assert found["combined"] == "ensemble"
    for size in found["sizes"]:
        expected = []
        for s in itertools.combinations(range(5), size["members"]):
            whole = (logits[list(s)].mean(0).argmax(-1) == labels).double().mean()
            expected.append(float(whole - correct[list(s)].double().mean()))
        assert size["gain"] == pytest.approx(expected, abs=1e-6)
        assert size["mean_gain"] > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# Accuracy against the share of recycled members.


def test_at_its_ends_the_share_gives_the_pure_soups():
    plain, recycled = world(4, seed=1), world(5, seed=2, center=1.0)
    found = accuracy_against_share(plain, recycled, quadratic, members=3)
    assert [point["share"] for point in found["shares"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert found["shares"][0]["mean"] == pytest.approx(closed_form(plain, 3))
    assert found["shares"][-1]["mean"] == pytest.approx(closed_form(recycled, 3))
    assert [point["subsets"] for point in found["shares"]] == [4, 20, 20, 10]


def test_between_the_ends_all_choices_of_both_kinds_are_averaged():
    plain, recycled = world(3, seed=1), world(3, seed=2)
    point = accuracy_against_share(plain, recycled, quadratic, members=3)["shares"][1]
    values = [
        quadratic({"w": (plain[i]["w"] + plain[j]["w"] + other["w"]) / 3})
        for i, j in itertools.combinations(range(3), 2)
        for other in recycled
    ]
    assert (point["recycled"], point["subsets"]) == (1, 9)
    assert point["mean"] == pytest.approx(np.mean(values))


def test_kinds_that_err_on_opposite_sides_are_best_in_equal_shares():
    plain, recycled = [{"w": GOAL + 1.0}] * 4, [{"w": GOAL - 1.0}] * 4
    found = accuracy_against_share(plain, recycled, quadratic, members=4)
    # The centre lies (1 - 2 mu) from the goal in each of 4 dimensions.
    assert means(found["shares"]) == pytest.approx(
        [1 - 4 * (1 - 2 * mu) ** 2 for mu in (0, 0.25, 0.5, 0.75, 1)]
    )


# Accuracy against the number of tasks.


def constant(value, count):
    return [{"w": np.array([float(value)])} for _ in range(count)]


def test_members_come_in_equal_parts_from_every_combination_of_groups():
    groups = {"a": constant(0, 6), "b": constant(6, 6), "c": constant(60, 6)}
    found = accuracy_against_tasks(groups, lambda theta: float(theta["w"][0]), members=6)
    assert means(found["tasks"]) == pytest.approx([22, 22, 22])
    assert [point["combinations"] for point in found["tasks"]] == [3, 3, 1]
    assert [point["too_small"] for point in found["tasks"]] == [[], [], []]
    # Six for each of three combinations of two, at 3, 30 and 33.
    pair = found["tasks"][1]
    assert pair["subsets"] == 18
    assert pair["error"] == pytest.approx(np.std([3, 30, 33] * 6, ddof=1) / math.sqrt(18))


def test_what_a_division_leaves_over_goes_to_different_groups():
    groups = {"a": constant(0, 2), "b": constant(3, 2)}
    seen = []

    def members_of_b(theta):
        seen.append(round(float(theta["w"][0])))  # an average of three: 3 k / 3 for k members of b
        return 0.0

    one, two = accuracy_against_tasks(groups, members_of_b, members=3)["tasks"]
    assert (one["subsets"], two["subsets"]) == (0, 4)
    # One of a and two of b, or two of a and one of b: each in two ways, all of them taken.
    assert sorted(seen) == [1, 1, 2, 2]


@pytest.mark.parametrize(("total", "count"), [(20, 1), (20, 3), (7, 4), (8, 4), (3, 3)])
def test_parts_are_all_the_most_equal_ones(total, count):
    brute = {
        part
        for part in itertools.product(range(total + 1), repeat=count)
        if sum(part) == total and max(part) - min(part) <= 1
    }
    parts = module._equal_parts(total, count)
    assert set(parts) == brute
    assert len(parts) == len(brute)


def test_more_initialisations_help_where_each_has_an_offset_of_its_own():
    offsets = np.random.default_rng(3).normal(size=(5, 4))
    groups = {str(i): [{"w": GOAL + offset}] * 8 for i, offset in enumerate(offsets)}
    found = accuracy_against_tasks(groups, quadratic, members=8, subsets=40)
    # Copies within a group: a subset of t groups is a subset of t members of the quadratic world, if 8 / t is whole.
    starts = [{"w": GOAL + offset} for offset in offsets]
    for t in (1, 2, 4):
        assert found["tasks"][t - 1]["mean"] == pytest.approx(closed_form(starts, t))


def test_groups_too_small_are_left_out_by_name():
    groups = {"big": constant(1, 4), "small": constant(2, 2), "tiny": constant(3, 1)}
    one, two, three = accuracy_against_tasks(groups, lambda theta: float(theta["w"][0]), members=4)["tasks"]
    assert one["too_small"] == ["small", "tiny"]
    assert (one["combinations"], one["mean"], one["subsets"]) == (1, 1.0, 1)
    assert two["too_small"] == ["tiny"]
    assert two["mean"] == pytest.approx(1.5)
    assert three["too_small"] == []  # tiny has the smaller part
    assert three["subsets"] == 6 * 2 + 4  # two of big and one of small, or one of big and two of small


def test_a_number_of_tasks_without_enough_members_has_no_value():
    groups = {"a": constant(1, 2), "b": constant(3, 2)}
    one, two = accuracy_against_tasks(groups, lambda theta: float(theta["w"][0]), members=4)["tasks"]
    assert one == {
        "tasks": 1,
        "combinations": 0,
        "mean": None,
        "error": None,
        "subsets": 0,
        "too_small": ["a", "b"],
    }
    assert (two["mean"], two["subsets"]) == (2.0, 1)


def test_there_are_never_more_tasks_than_members():
    groups = {name: constant(1, 2) for name in "abc"}
    assert len(accuracy_against_tasks(groups, lambda theta: 1.0, members=2)["tasks"]) == 2


def test_many_combinations_are_sampled():
    groups = {str(i): constant(i, 3) for i in range(8)}
    found = accuracy_against_tasks(groups, lambda theta: float(theta["w"][0]), members=3, subsets=10)
    assert [point["combinations"] for point in found["tasks"]] == [8, 10, 10]
    assert [point["subsets"] for point in found["tasks"]] == [8, 10, 10]


# Choices.


@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 30), st.integers(0, 5))
def test_ways_are_different_of_the_right_parts_and_all_if_few(a, b, count, seed):
    pools = [range(5), range(5, 9)]
    ways = module._ways(pools, [(a, b), (b, a)], count, np.random.default_rng(seed))
    for way in ways:
        assert len(set(way)) == a + b
        assert list(way) == sorted(way)
        assert (sum(i < 5 for i in way), sum(i >= 5 for i in way)) in {(a, b), (b, a)}
    if a != b:
        total = math.comb(5, a) * math.comb(4, b) + math.comb(5, b) * math.comb(4, a)
        assert len({tuple(sorted(way)) for way in ways}) == len(ways) == min(total, count)


def test_random_subsets_take_each_member_equally_often():
    ways = module._ways([range(20)], [(6,)], 2000, np.random.default_rng(0))
    counts = np.bincount(np.array(ways).ravel(), minlength=20)
    # Binomial with 2000 draws at 0.3: a standard deviation of 20.5.
    assert np.abs(counts - 600).max() < 4 * 20.5


# The way between weights.


def test_between_two_weights_a_quadratic_is_a_parabola_beside_its_chord():
    a, b = {"w": np.array([1.0])}, {"w": np.array([-1.0])}
    scores = {
        "ID": lambda theta: float(theta["w"][0] ** 2),
        "OOD": lambda theta: 1 - float(theta["w"][0] ** 2),
    }
    found = interpolation_curve(a, b, scores, points=5, tolerance=0.1)
    for point, share in zip(found["scores"]["ID"]["points"], (0, 0.25, 0.5, 0.75, 1), strict=True):
        assert point["coefficients"] == pytest.approx([1 - share, share])
        assert point["value"] == pytest.approx((1 - 2 * share) ** 2)
        assert point["chord"] == pytest.approx(1)
        assert point["drop"] == pytest.approx(1 - (1 - 2 * share) ** 2)
    assert found["scores"]["ID"]["connected"] is False
    assert found["scores"]["OOD"]["connected"] is True
    assert found["connected"] is False
    assert "100.0 points worse than the chord" in found["scores"]["ID"]["verdict"]
    assert found["scores"]["OOD"]["verdict"].startswith("Connected: no point")


def test_the_tolerance_decides():
    a, b = {"w": np.array([0.1])}, {"w": np.array([-0.1])}  # a drop of 0.01 in the middle
    scores = {"OOD": lambda theta: float(theta["w"][0] ** 2)}
    assert interpolation_curve(a, b, scores, tolerance=0.011)["connected"]
    assert not interpolation_curve(a, b, scores, tolerance=0.009)["connected"]
    assert interpolation_curve(a, b, scores)["connected"]


def test_between_three_weights_the_line_starts_at_the_average_of_two():
    a, b, c = ({"w": np.array(w)} for w in ([1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]))
    scores = {"OOD": lambda theta: float(theta["w"] @ theta["w"])}
    found = interpolation_curve(a, b, scores, theta_c=c, points=3)
    assert found["ends"] == 3
    first, middle, last = found["scores"]["OOD"]["points"]
    assert first == {"coefficients": [0.5, 0.5, 0.0], "value": 0.0, "chord": 1.0, "drop": 1.0}
    assert middle == {"coefficients": [0.25, 0.25, 0.5], "value": 1.0, "chord": 2.5, "drop": 1.5}
    assert last == {"coefficients": [0.0, 0.0, 1.0], "value": 4.0, "chord": 4.0, "drop": 0.0}
    assert found["scores"]["OOD"]["barrier"] == 1.5
    assert not found["connected"]
    copies = interpolation_curve(c, c, scores, theta_c=c, tolerance=0)
    assert copies["connected"]


def test_one_number_per_sample_adds_their_noise_between_two_weights():
    a, b = {"w": np.array([0.0])}, {"w": np.array([1.0])}

    def per_sample(theta):
        return (np.arange(50) / 50 < 0.5 + 0.1 * abs(theta["w"][0] - 0.5)).astype(float)

    two = interpolation_curve(a, b, {"OOD": per_sample})["scores"]["OOD"]
    assert two["samples"] == 50
    assert two["margin"] > 0
    three = interpolation_curve(a, b, {"OOD": per_sample}, theta_c=b)["scores"]["OOD"]
    assert three["samples"] is None
    assert three["points"][-1]["value"] == pytest.approx(0.56)


# All of them.


def test_results_are_json():
    groups = {"a": world(3), "b": world(3, seed=1)}
    for found in (
        accuracy_against_members(
            world(3), quadratic, snapshots=world(2), logits=torch.rand(3, 5, 2), labels=torch.zeros(5).long()
        ),
        gain_against_diversity(world(4), quadratic, right(4)),
        accuracy_against_share(world(3), world(3), quadratic, members=2),
        accuracy_against_tasks(groups, quadratic, members=3),
        interpolation_curve(*world(2), {"OOD": quadratic}),
    ):
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_against_members([], quadratic), "members: expected at least one"),
        (lambda: accuracy_against_members({"w": GOAL}, quadratic), "put it in a list"),
        (
            lambda: accuracy_against_members(world(2), quadratic, snapshots=[]),
            "snapshots: expected at least one",
        ),
        (lambda: accuracy_against_members(world(2), quadratic, subsets=0), "subsets: expected at least 1"),
        (lambda: accuracy_against_members(world(2), quadratic, sizes=[3]), r"from 1 to 2, got \[3\]"),
        (lambda: accuracy_against_members(world(2), quadratic, sizes=[]), r"from 1 to 2, got \[\]"),
        (
            lambda: accuracy_against_members(world(2), quadratic, logits=torch.ones(2, 3, 2)),
            "logits without labels",
        ),
        (
            lambda: accuracy_against_members(world(2), quadratic, labels=torch.zeros(3)),
            "labels without logits",
        ),
        (
            lambda: accuracy_against_members(
                world(2), quadratic, logits=torch.ones(3, 4, 2), labels=torch.zeros(4).long()
            ),
            r"expected shape \(2, samples, classes\).*got \(3, 4, 2\)",
        ),
        (
            lambda: accuracy_against_members(world(2), lambda theta: math.nan),
            "finite number for member 0, got nan",
        ),
        (
            lambda: accuracy_against_members(world(2), lambda theta: None),
            "expected a number for member 0, got None",
        ),
        (
            lambda: accuracy_against_members(world(2), lambda theta: math.inf, sizes=[2]),
            "the average of members 0, 1, got inf",
        ),
        (lambda: gain_against_diversity(world(3), quadratic, right(2)), r"shape \(3, samples\)"),
        (lambda: gain_against_diversity(world(2), quadratic, torch.ones(2, 4)), "got torch.float32"),
        (lambda: gain_against_diversity(world(1), quadratic, right(1)), r"from 2 to 1, got \[2\]"),
        (lambda: gain_against_diversity(world(3), quadratic, right(3), sizes=[1, 2]), r"got \[1, 2\]"),
        (lambda: gain_against_diversity(world(3), quadratic), "a matrix of diversities, got neither"),
        (lambda: gain_against_diversity(world(3), quadratic, right(3), pairs=torch.ones(3, 3)), "got both"),
        (
            lambda: gain_against_diversity(world(3), quadratic, pairs=torch.ones(2, 2)),
            r"pairs: expected shape \(3, 3\), a row for each member, got \(2, 2\)",
        ),
        (lambda: gain_against_diversity(world(3), quadratic, right(3), runs="ab"), "each of the 3 .* got 2"),
        (
            lambda: gain_against_diversity(world(3), quadratic, right(3), resamples=1),
            "0 or at least 2, got 1",
        ),
        (lambda: gain_against_diversity(world(3), quadratic, right(3), combined="vote"), "got 'vote'"),
        (
            lambda: gain_against_diversity(world(3), quadratic, right(3), labels=torch.zeros(80).long()),
            "are for combined='ensemble'",
        ),
        (
            lambda: gain_against_diversity(
                world(3), quadratic, right(3), combined="ensemble", logits=torch.ones(3, 80, 2)
            ),
            "logits without labels",
        ),
        (
            lambda: accuracy_against_share(world(2), world(3), quadratic, members=3),
            "plain: expected at least 3",
        ),
        (lambda: accuracy_against_share(world(3), world(2), quadratic, members=3), "recycled: .* got 2"),
        (
            lambda: accuracy_against_share(world(3), world(2), quadratic, members=0),
            "members: expected at least 1",
        ),
        (lambda: accuracy_against_tasks({}, quadratic, members=3), "at least one group, got 3 and 0"),
        (
            lambda: accuracy_against_tasks({"a": world(1), "b": world(2)}, quadratic, members=4),
            "for 4 in equal parts .* got 'a' 1, 'b' 2",
        ),
        (lambda: interpolation_curve(*world(2), {}), "scores: expected at least one"),
        (lambda: interpolation_curve(*world(2), {"OOD": quadratic}, points=2), "points: expected at least 3"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(InputError, match=message):
        call()
