import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.merging.driver import bits, check_copies, check_pieces, drive, example, start

from mirepoix.merging._ties import Ties, disjoint_sum
from mirepoix.types import InputError


def trimmed(thetas, base, density):
    """The definition: sort all entries by magnitude, then place, and keep the first ones."""
    deltas = [np.concatenate([t[n].ravel().astype("f8") - base[n].ravel() for n in t]) for t in thetas]
    out = []
    for delta in deltas:
        count = math.ceil(Fraction(str(density)) * len(delta))
        order = sorted(range(len(delta)), key=lambda i: (-abs(np.float32(delta[i])), i))
        keep = np.zeros(len(delta))
        keep[order[:count]] = 1
        out.append(delta * keep)
    return out


def by_hand(thetas, base, density, weights, scale):
    """TIES entry by entry, of all tensors together."""
    flat = np.concatenate([base[n].ravel().astype("f8") for n in thetas[0]])
    kept = trimmed(thetas, base, density)
    for e in range(len(flat)):
        votes = [w * d[e] for w, d in zip(weights, kept, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agree = [(w, v) for w, v in zip(weights, votes, strict=True) if v * sign > 0]
        if agree:
            flat[e] += scale * sum(v for _, v in agree) / sum(w for w, _ in agree)
    return flat


SIX = [
    {"w": np.array([5.0, -4.0, 3.0, -2.0, 1.0, 0.5])},
    {"w": np.array([-1.0, -6.0, 4.0, 3.0, 0.1, 2.0])},
    {"w": np.array([2.0, 5.0, -0.5, 6.0, 3.0, -1.0])},
]
ZERO = {"w": np.zeros(6)}


def test_six_entries_by_hand():
    # Kept, three of six:  5 -4 3 0 0 0 | 0 -6 4 3 0 0 | 0 5 0 6 3 0; the second entry elects -.
    merged = drive(Ties(density=0.5), SIX, ZERO)["w"]
    np.testing.assert_allclose(merged, [5, -5, 3.5, 4.5, 3, 0])


def test_six_entries_by_hand_with_weights_as_mergekit_elects():
    # Weighted: 5 -4 3 0 0 0 | 0 -3 2 1.5 0 0 | 0 10 0 12 6 0; the second entry now elects +.
    merged = drive(Ties(coefficients=[1.0, 0.5, 2.0], density=0.5, scale=0.8), SIX, ZERO)["w"]
    np.testing.assert_allclose(merged, 0.8 * np.array([5, 5, 5 / 1.5, 13.5 / 2.5, 3, 0]))


def test_six_entries_by_hand_with_weights_as_peft_elects_and_counts():
    # Elected on changes: - at the second entry; then 4 + 3 over two, 3 + 2 over two, 1.5 + 12 over two.
    rule = Ties(coefficients=[1.0, 0.5, 2.0], density=0.5, elect="unweighted", normalize="count")
    np.testing.assert_allclose(drive(rule, SIX, ZERO)["w"], [5, -3.5, 2.5, 6.75, 6, 0])


def test_without_normalisation_what_agrees_is_added():
    merged = drive(Ties(density=0.5, normalize=False), SIX, ZERO)["w"]
    np.testing.assert_allclose(merged, [5, -10, 7, 9, 3, 0])


def test_a_tied_vote_is_positive():
    members = [{"w": np.array([2.0, -1.0])}, {"w": np.array([-2.0, 1.0])}]
    np.testing.assert_array_equal(drive(Ties(density=1.0), members, {"w": np.zeros(2)})["w"], [2, 1])


def test_negative_coefficients_turn_changes_round():
    members = [{"w": np.array([1.0, 3.0])}, {"w": np.array([4.0, -1.0])}]
    merged = drive(Ties(coefficients=[1.0, -0.5], density=1.0), members, {"w": np.zeros(2)})["w"]
    # Votes 1, -2 and 3, 0.5: minus the second member; then both, over 1.5.
    np.testing.assert_allclose(merged, [-4, 3.5 / 1.5])


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.3, 0.7, 1.0]), st.booleans())
def test_the_definition_entry_by_entry(seed, density, coarse):
    thetas, base = [example(seed + i, dtype="float64") for i in range(3)], start("float64")
    if coarse:  # few distinct magnitudes: many at the threshold
        thetas = [{n: np.round(x * 8) / 8 for n, x in t.items()} for t in thetas]
        base = {n: np.round(x * 8) / 8 for n, x in base.items()}
    weights = [0.5, 1.0, 0.8]
    rule = Ties(coefficients=weights, density=density, scale=0.7)
    merged = drive(rule, thetas, base, block=5, chunk=3)
    flat = np.concatenate([x.ravel() for x in merged.values()])
    np.testing.assert_allclose(flat, by_hand(thetas, base, density, weights, 0.7), rtol=1e-12, atol=1e-15)
    rule = Ties(coefficients=weights, density=density, scale=0.7, scope="tensor")
    merged = drive(rule, thetas, base, block=5, chunk=3)
    for name in base:
        alone = by_hand([{name: t[name]} for t in thetas], base, density, weights, 0.7)
        np.testing.assert_allclose(merged[name].ravel(), alone, rtol=1e-12, atol=1e-15)


def test_exactly_the_share_is_kept_and_of_equal_changes_the_first():
    shapes = {"a": (4,), "b": (100_000,), "c": (6,)}
    base = {n: np.zeros(s) for n, s in shapes.items()}
    member = {n: np.ones(s) for n, s in shapes.items()}
    merged = drive(Ties(density=0.7), [member], base)  # 70,007 of 100,010: past the first block of b
    kept = np.concatenate(list(merged.values()))
    np.testing.assert_array_equal(kept, np.arange(100_010) < 70_007)
    ten = drive(Ties(density=0.7), [{"w": np.ones(10)}], {"w": np.zeros(10)})["w"]
    assert ten.sum() == 7  # though 0.7 * 10 > 7
    assert drive(Ties(density=0.01), [{"w": np.ones(10)}], {"w": np.zeros(10)})["w"].sum() == 1


def test_nothing_is_kept_of_nothing():
    empty = {"w": np.zeros((0, 3))}
    for scope in ("global", "tensor"):
        assert drive(Ties(scope=scope), [empty, empty], empty)["w"].shape == (0, 3)


def test_magnitudes_are_compared_in_float32():
    member = {"w": np.array([1.0, 1 + 1e-12, 0.5, 2.0])}
    merged = drive(Ties(density=0.5), [member], {"w": np.zeros(4)})["w"]
    np.testing.assert_array_equal(merged, [1, 0, 0, 2])


def test_global_and_tensor_trims_differ():
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    members = [{"a": np.array([4.0, 3.0]), "b": np.array([1.0, 2.0])}]
    assert drive(Ties(density=0.5), members, base)["b"].tolist() == [0, 0]
    assert drive(Ties(density=0.5, scope="tensor"), members, base)["b"].tolist() == [0, 2]


def test_each_member_may_have_its_density():
    base = {"w": np.zeros(4)}
    members = {"x": {"w": np.array([4.0, 3.0, 2.0, 1.0])}, "y": {"w": np.array([0.0, 0.0, 6.0, 7.0])}}
    for density in ([1.0, 0.25], {"y": 0.25, "x": 1.0}):
        assert drive(Ties(density=density), members, base)["w"].tolist() == [4, 3, 2, 4]


def test_within_tensors_densities_may_differ_by_name():
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    members = [{"a": np.array([4.0, 3.0]), "b": np.array([1.0, 2.0])}]
    rule = Ties(density=[[("a", 1.0), ("", 0.5)]], scope="tensor")
    merged = drive(rule, members, base)
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([4, 3], [0, 2])
    with pytest.raises(InputError, match="one that differs from tensor to tensor needs scope='tensor'"):
        Ties(density=[lambda name: 0.5])
    with pytest.raises(InputError, match=r"density for 'b': expected the kept share, in \(0, 1\], got 2.0"):
        drive(Ties(density=[lambda name: 2.0], scope="tensor"), members, base)


def test_coefficients_may_differ_from_tensor_to_tensor():
    base = {"a": np.zeros(1), "b": np.zeros(1)}
    members = [{"a": np.ones(1), "b": np.ones(1)}, {"a": 4 * np.ones(1), "b": 4 * np.ones(1)}]
    merged = drive(Ties(coefficients=[1.0, [("a", 0.5), ("", 2.0)]], density=1.0), members, base)
    np.testing.assert_allclose([merged["a"][0], merged["b"][0]], [2.0, 3.0])


def test_a_tensor_that_some_members_lack_is_merged_from_the_others():
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    members = [{"b": np.array([9.0, 8.0])}, {"a": np.array([4.0, 3.0]), "b": np.array([1.0, 2.0])}]
    merged = drive(Ties(coefficients=[0.5, 2.0], density=0.5), members, base)
    assert merged["a"].tolist() == [4, 3]
    assert merged["b"].tolist() == [9, 0]


def test_not_a_number_is_neither_trimmed_nor_outvoted():
    members, base = [example(1), example(2)], start()
    members[1]["a"][2, 3] = np.nan
    assert np.isnan(drive(Ties(density=0.1), members, base)["a"][2, 3])
    with np.errstate(invalid="ignore"):
        assert np.isnan(disjoint_sum([np.array([np.nan]), np.array([1.0])], [1.0, 1.0], "weighted", True))


def test_unchanged_entries_are_the_base_to_the_last_bit():
    base = {"w": np.array([-0.0, 0.1, 3.0], "f4")}
    member = {"w": np.array([0.0, 0.1, 4.0], "f4")}
    assert bits(drive(Ties(density=1.0), [member], base)) == bits({"w": np.array([-0.0, 0.1, 4.0], "f4")})


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_copies_give_the_same_bits(scope):
    check_copies(lambda labels, theta: Ties([0.3, 0.3, 0.9], scope=scope, scale=0.7))


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_pieces_do_not_matter(scope):
    check_pieces(lambda labels, theta: Ties(scope=scope, density=[0.2, 0.5, 0.9]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ties(density=0.0), r"density: expected the kept share, in \(0, 1\], got 0.0"),
        (lambda: Ties(density=[0.5, 1.5]), "got 1.5"),
        (lambda: Ties(density={"x": -1.0}), "got -1.0"),
        (lambda: Ties(scope="layer"), "scope: expected 'global' or 'tensor', got 'layer'"),
        (lambda: Ties(elect="count"), "elect: expected 'weighted' or 'unweighted', got 'count'"),
        (lambda: Ties(normalize="weights"), "normalize: expected True, False or 'count', got 'weights'"),
        (lambda: Ties(scale=math.inf), "scale: expected a finite number, got inf"),
        (lambda: Ties(density=[[("(", 0.5)]], scope="tensor").check("x"), "is not a regular expression"),
        (lambda: Ties(density=[0.5]).check("xy"), r"density: expected one per member \(2\), got 1"),
        (
            lambda: Ties(density={"x": 0.5, "z": 0.5}).check("xy"),
            "density: expected the members x, y, got x, z",
        ),
        (lambda: Ties(coefficients=[1.0]).check("xy"), "one coefficient per member"),
    ],
)
def test_errors_say_what_was_expected(make, message):
    with pytest.raises(InputError, match=message):
        make()
