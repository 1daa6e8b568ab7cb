import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards import (
    RewardFront,
    area_over_front,
    compare_fronts,
    hypervolume,
    minmax,
    reward_curves,
    simplex_lattice,
    spider_area,
)
from mirepoix.types import InputError
from tests.reference import spider as reference
from tests.rewards.fronts import CAPTIONING, NEWS, table_front

AXES = tuple("abcdefgh")


def line_front(columns, items=None, noise=0.0, seed=0):
    """Two experts on a line; ``columns`` maps a reward to its values along it."""
    means = np.array(list(columns.values()), dtype=float).T
    last = len(means) - 1
    values = None
    if items:
        drawn = np.random.default_rng(seed).normal(size=(*means.shape, items))
        values = means[..., None] + noise * (drawn - drawn.mean(axis=-1, keepdims=True))
    return RewardFront(
        ("a", "b"),
        tuple(columns),
        tuple({"a": 1 - i / last, "b": i / last} for i in range(last + 1)),
        means=means if values is None else None,
        values=values,
    )


# Curves


def test_each_reward_is_described_along_the_line():
    front = line_front({"a": [1, 0.8, 0.5, 0], "b": [0, 0.6, 0.7, 1], "new": [0.2, 0.5, 0.4, 0.3]})
    curves = reward_curves(front).curves
    a, b, new = curves["a"], curves["b"], curves["new"]
    assert (a.trained, b.trained, new.trained) == (True, True, False)
    assert (a.direction, b.direction, new.direction) == ("falling", "rising", "rising")
    assert (a.monotone, b.monotone, new.monotone) == (True, True, False)
    assert a.violation == b.violation == a.gain == b.gain == 0
    assert new.violation == pytest.approx(0.2)  # from 0.5 down to 0.3
    assert (new.best, new.at, new.gain) == (0.5, front.coefficients[1], pytest.approx(0.2))
    assert new.ends == {"a": 0.2, "b": 0.3}
    assert (a.above_ends, new.above_ends) == (0, 1)
    assert new.gain_interval is None
    assert reward_curves(front).improved == ("new",)


def test_curves_do_not_depend_on_the_order_of_points_and_experts_turn_the_direction():
    front = line_front({"a": [1, 0.8, 0.5, 0], "new": [0.2, 0.5, 0.4, 0.3]})
    order = [2, 0, 3, 1]
    shuffled = RewardFront(
        front.experts, front.rewards, tuple(front.coefficients[i] for i in order), front.means[order]
    )
    assert reward_curves(shuffled).curves == reward_curves(front).curves
    turned = RewardFront(("b", "a"), front.rewards, front.coefficients, front.means)
    assert reward_curves(turned).curves["a"].direction == "rising"


def test_noise_of_the_items_makes_a_small_fall_no_violation():
    falls = {"a": [0, 0.5, 0.47, 1]}
    assert not reward_curves(line_front(falls)).curves["a"].monotone
    few = reward_curves(line_front(falls, items=100, noise=1.0)).curves["a"]
    assert few.violation == pytest.approx(0.03)
    assert few.tolerance > 0.1
    assert few.monotone
    many = reward_curves(line_front(falls, items=100_000, noise=1.0), resamples=200).curves["a"]
    assert many.tolerance < 0.02
    assert not many.monotone


def test_a_gain_has_an_interval_from_the_items():
    curve = reward_curves(line_front({"new": [0, 0.5, 0]}, items=400, noise=1.0)).curves["new"]
    assert curve.gain_interval.value == pytest.approx(curve.gain)
    # The difference of a mean and the larger of two others, each with the standard error 1/20.
    assert curve.gain_interval.low == pytest.approx(0.5 - 2.2 / 20, abs=0.04)
    assert curve.gain_interval.excludes_zero
    again = reward_curves(line_front({"new": [0, 0.5, 0]}, items=400, noise=1.0)).curves["new"]
    assert again == curve
    other = reward_curves(line_front({"new": [0, 0.5, 0]}, items=400, noise=1.0), seed=1).curves["new"]
    assert other.gain_interval != curve.gain_interval


def test_with_three_experts_there_is_a_gain_and_no_direction():
    names = ("a", "b", "c")
    lattice = tuple(simplex_lattice(names, 2))
    means = [
        [
            4
            * sum(
                x * y for i, x in enumerate(shares.values()) for j, y in enumerate(shares.values()) if i != j
            )
        ]
        for shares in lattice
    ]
    curve = reward_curves(RewardFront(names, ("new",), lattice, means)).curves["new"]
    assert (curve.direction, curve.violation, curve.monotone) == (None, None, None)
    assert curve.gain > 0
    assert curve.above_ends == 1


def test_the_curves_are_told_line_by_line():
    text = str(reward_curves(line_front({"a": [1, 0.8, 0], "new": [0.2, 0.5, 0.3]})))
    assert "a (trained): experts {a: 1, b: 0}, no soup above the best of them; falling" in text
    assert "new (not trained): experts {a: 0.2, b: 0.3}, best 0.5 at lambda = {a: 0.5, b: 0.5}" in text
    assert "0.2 above every expert; not monotone" in text
    assert text.endswith("1 of 1 rewards that were not trained on gain from a soup.")


# Spider maps


@given(st.lists(st.floats(0, 2), min_size=3, max_size=6))
def test_the_mean_area_is_that_over_all_orders_of_the_axes(radii):
    found = spider_area(dict(zip(AXES, radii, strict=False)))
    areas = reference.areas(radii)
    assert found.in_order == pytest.approx(reference.area(radii), abs=1e-12)
    assert found.value == pytest.approx(np.mean(areas), abs=1e-12)
    assert found.smallest == pytest.approx(min(areas), abs=1e-12)
    assert found.largest == pytest.approx(max(areas), abs=1e-12)
    assert found.orders == math.factorial(len(radii)) // len(radii) // 2


def test_with_three_axes_the_order_does_not_matter_and_with_nine_it_is_not_enumerated():
    three = spider_area({"a": 1.0, "b": 2.0, "c": 0.5})
    assert three.value == pytest.approx(three.smallest) == pytest.approx(three.largest)
    nine = spider_area({str(k): 1.0 for k in range(9)})
    assert nine.value == pytest.approx(9 / 2 * math.sin(2 * math.pi / 9))
    assert (nine.smallest, nine.largest, nine.orders) == (None, None, 20160)


@given(st.lists(st.floats(0, 2), min_size=4, max_size=7), st.floats(0, 1))
def test_a_larger_radius_never_shrinks_the_area(radii, more):
    before = spider_area(dict(zip(AXES, radii, strict=False)))
    after = spider_area(dict(zip(AXES, [radii[0] + more, *radii[1:]], strict=False)))
    assert after.value >= before.value - 1e-12
    assert after.smallest >= before.smallest - 1e-12


# Two fronts


def test_both_fronts_are_measured_in_one_box():
    soup, morl = table_front(NEWS), table_front(NEWS[3:6], label="MORL")
    found = compare_fronts(soup, morl)
    both = np.array(NEWS)
    ideal, nadir = both.max(axis=0), both.min(axis=0)
    for rows, volume, area in zip((NEWS, NEWS[3:6]), found.hypervolumes, found.areas, strict=True):
        scaled = (np.array(rows) - nadir) / (ideal - nadir)
        assert volume.value == pytest.approx(hypervolume(scaled, (0, 0)).value)
        assert area.value == pytest.approx(area_over_front(rows, ideal, nadir, scale="minmax").value)
        assert volume.ideal == area.ideal == tuple(ideal)
        assert volume.nadir == area.nadir == tuple(nadir)
        assert (volume.scale, area.scale) == ("minmax", "minmax")
        assert (volume.higher_is_better, area.higher_is_better) == (True, False)
    assert found.hypervolume_difference.value == found.hypervolumes[0].value - found.hypervolumes[1].value
    assert math.isnan(found.hypervolume_difference.low)
    assert found.labels == ("rewarded soup", "MORL")
    assert found.dominated == (1 / 11, 1 / 3)


def test_swapping_the_fronts_swaps_the_result():
    one, two = table_front(CAPTIONING), table_front(CAPTIONING[::2], label="coarse")
    found, turned = compare_fronts(one, two), compare_fronts(two, one)
    assert turned.hypervolumes == found.hypervolumes[::-1]
    assert turned.areas == found.areas[::-1]
    assert turned.area_difference.value == -found.area_difference.value
    assert turned.dominated == found.dominated[::-1]


def test_a_front_compared_with_itself_differs_by_nothing():
    front = line_front({"a": [1, 0.7, 0], "b": [0, 0.8, 1]}, items=50, noise=0.5)
    found = compare_fronts(front, front)
    for interval in (found.hypervolume_difference, found.area_difference):
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_the_interval_is_paired_over_items():
    """A shift of every item by the same number for both fronts cancels; the better front stays better."""
    columns = {"a": [1, 0.7, 0], "b": [0, 0.8, 1]}
    soup = line_front(columns, items=60, noise=0.2)
    shared = np.random.default_rng(5).normal(size=60)
    values = soup.values + 0.2 * shared
    better = RewardFront(soup.experts, soup.rewards, soup.coefficients, values=values)
    worse = RewardFront(soup.experts, soup.rewards, soup.coefficients, values=values - 0.05, label="MORL")
    found = compare_fronts(better, worse, resamples=300)
    assert found.hypervolume_difference.low > 0
    assert found.area_difference.high < 0
    for interval in (found.hypervolume_difference, found.area_difference):
        assert interval.low <= interval.value <= interval.high
    assert found.dominated == (0, 1)
    assert compare_fronts(better, worse, resamples=300) == found
    assert compare_fronts(better, worse, resamples=300, seed=1).areas == found.areas
    none = compare_fronts(better, worse, resamples=0)
    assert math.isnan(none.area_difference.low)
    assert none.area_difference.value == found.area_difference.value


def test_three_rewards_use_the_staircase():
    names = ("a", "b", "c")
    lattice = tuple(simplex_lattice(names, 2))
    means = [[math.sqrt(shares[name]) for name in names] for shares in lattice]
    found = compare_fronts(
        RewardFront(names, names, lattice, means), RewardFront(names, names, lattice[:2], means[:2])
    )
    for volume, area in zip(found.hypervolumes, found.areas, strict=True):
        assert area.value == pytest.approx(1 - volume.value)
        assert "staircase" in area.convention


def test_ideal_and_nadir_may_be_given():
    soup, morl = table_front(NEWS), table_front(NEWS[3:6])
    found = compare_fronts(soup, morl, ideal=(2, 0), nadir=(0, -2))
    expected = area_over_front(NEWS, (2, 0), (0, -2), scale="minmax")
    assert found.areas[0].value == pytest.approx(expected.value)
    # With a box that stays, all that is shared does not cancel.
    one = line_front({"a": [1, 0.7, 0], "b": [0, 0.8, 1]}, items=50, noise=0.5)
    two = RewardFront(one.experts, one.rewards, one.coefficients, values=one.values - 0.1)
    wide = compare_fronts(one, two, ideal=(3, 3), nadir=(-3, -3), resamples=200)
    assert wide.hypervolume_difference.low < wide.hypervolume_difference.high
    assert wide.hypervolume_difference.low > 0


def test_the_comparison_is_told_line_by_line():
    text = str(compare_fronts(table_front(NEWS), table_front(NEWS[3:6], label="MORL")))
    assert "rewarded soup: " in text
    assert "higher is better" in text
    assert "lower is better" in text
    assert "difference of hypervolume, rewarded soup - MORL: " in text
    assert "no interval" in text
    assert "points of rewarded soup that one of MORL dominates: 9 %" in text


PLAIN = table_front(NEWS)
WITH_ITEMS = line_front({"first": [1, 0.7, 0], "second": [0, 0.8, 1]}, items=5, noise=1.0)
OTHER_ITEMS = line_front({"first": [1, 0.7, 0], "second": [0, 0.8, 1]}, items=6, noise=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reward_curves(RewardFront(("a", "b"), ("a",), ({"a": 1, "b": 0},), [[1.0]])),
            "but 'b' is missing",
        ),
        (lambda: spider_area({"a": 1.0, "b": 1.0}), "needs three rewards or more, got 2"),
        (lambda: spider_area({"a": 1.0, "b": -1.0, "c": 1.0}), "numbers from 0, got -1 for 'b'"),
        (lambda: spider_area({"a": 1.0, "b": math.nan, "c": 1.0}), "a finite number for 'b'"),
        (lambda: compare_fronts(PLAIN, table_front(NEWS, "x", "y")), "the front has no 'first'"),
        (lambda: compare_fronts(WITH_ITEMS, OTHER_ITEMS), "the same evaluation items, got 5 and 6"),
        (
            lambda: compare_fronts(PLAIN, PLAIN.normalised(minmax(PLAIN.by_reward()))),
            "the fronts are on different scales",
        ),
        (
            lambda: compare_fronts(
                table_front(NEWS, provenance={"evaluation": "x"}),
                table_front(NEWS, provenance={"evaluation": "y"}),
            ),
            "evaluated differently, as 'x' and 'y'",
        ),
        (lambda: compare_fronts(PLAIN, PLAIN, ideal=(1, 1)), "bounds on all points of the fronts"),
        (
            lambda: compare_fronts(table_front([(1, 2), (1, 3)]), table_front([(1, 2)] * 2)),
            "reward 0 is 1 in the ideal",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_front_beside_widens_the_box_in_every_draw():
    random = np.random.default_rng(3)
    shares = ({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 1.0})

    def front(points, shift):
        # All points of a draw move together, much more than they differ.
        values = np.array(points)[:, :, None] + shift
        return RewardFront(("a", "b"), ("a", "b"), shares[: len(points)], values=values)

    shift = random.normal(size=(1, 1, 400)) * 5
    soup = front([(1, 0), (0.8, 0.8), (0, 1)], shift)
    morl = front([(1, 0), (0.5, 0.5), (0, 1)], shift)
    wide = front([(2, -1)], shift)
    found = compare_fronts(soup, morl, beside=[wide])
    assert found.hypervolumes[0].ideal == pytest.approx((soup.means[0, 0] + 1, soup.means[2, 1]))
    interval = found.hypervolume_difference
    assert interval.low == pytest.approx(interval.value) == pytest.approx(interval.high)
    assert interval.value < compare_fronts(soup, morl).hypervolume_difference.value
