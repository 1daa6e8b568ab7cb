"""Groups of members: pairs by double loops, and intervals that know that pairs share members."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.bootstrap import bootstrap
from mirepoix.diversity._groups import GroupMeans, PairSummary, group_means, summarise_pairs
from mirepoix.types import InputError


def symmetric(members: int, seed: int) -> torch.Tensor:
    x = torch.rand(members, members, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + x.T


def by_loops(matrix: torch.Tensor, labels: list[Any]) -> tuple[list[float], list[float]]:
    within, across = [], []
    for i, j in combinations(range(len(labels)), 2):
        (within if labels[i] == labels[j] else across).append(float(matrix[i, j]))
    return within, across


@given(
    labels=st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=2, max_size=12),
    seed=st.integers(0, 2**31),
)
def test_a_double_loop_agrees(labels: list[str], seed: int) -> None:
    matrix = symmetric(len(labels), seed)
    within, across = by_loops(matrix, labels)
    means = group_means(matrix, labels, resamples=20)
    assert (means.pairs_within, means.pairs_across) == (len(within), len(across))
    assert means.groups == len(set(labels))
    assert (means.within is None, means.across is None) == (not within, not across)
    if means.within:
        assert means.within.value == pytest.approx(fmean(within))
    if means.across:
        assert means.across.value == pytest.approx(fmean(across))
    assert (means.difference is None) == (not within or not across)
    if means.difference:
        assert means.difference.value == pytest.approx(fmean(across) - fmean(within))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = group_means(matrix[order][:, order], [labels[int(i)] for i in order], resamples=20)
    for a, b in ((means.within, shuffled.within), (means.across, shuffled.across)):
        assert (a is None) == (b is None)
        if a and b:
            assert a.value == pytest.approx(b.value)


def test_only_what_lies_above_the_diagonal_is_read() -> None:
    matrix = symmetric(5, 0)
    labels = [0, 1, 0, 1, 2]
    other = matrix.triu(1) + torch.full((5, 5), torch.nan, dtype=torch.float64).tril()
    assert group_means(other, labels) == group_means(matrix, labels)
    assert summarise_pairs(other) == summarise_pairs(matrix)


def test_a_group_drawn_twice_counts_twice_and_makes_no_pair_with_itself() -> None:
    labels = list("aabbbccdde") + ["e"] * 3
    matrix = symmetric(len(labels), 1)
    groups = [[i for i, label in enumerate(labels) if label == name] for name in "abcde"]

    def by_copies(drawn: Any) -> list[float]:
        within, across = [], []
        for g in drawn:
            within += [float(matrix[i, j]) for i, j in combinations(groups[g], 2)]
        for a, b in combinations(range(len(drawn)), 2):
            if drawn[a] != drawn[b]:
                across += [float(matrix[i, j]) for i in groups[drawn[a]] for j in groups[drawn[b]]]
        inside, outside = (fmean(x) if x else math.nan for x in (within, across))
        return [inside, outside, outside - inside]

    means = group_means(matrix, labels, resamples=200, level=0.8, seed=3)
    expected = bootstrap(by_copies, 5, resamples=200, level=0.8, seed=3)
    for got, want in zip((means.within, means.across, means.difference), expected, strict=True):
        assert got is not None
        assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high))
        assert got.level == 0.8


def test_intervals_hold_the_truth_where_groups_shift_their_pairs_together() -> None:
    # Each group has a level of its own, shared by all of its ten pairs: drawing pairs apart would forget it.
    hits = narrow = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = np.repeat(np.arange(12), 5)
        noise = torch.from_numpy(random.normal(size=(60, 60)) * 0.1)
        levels = torch.from_numpy(random.normal(size=12))[labels]
        matrix = (
            torch.where(torch.from_numpy(labels[:, None] == labels), levels[:, None], 0.0) + noise + noise.T
        )
        within = group_means(matrix, labels.tolist(), resamples=200, seed=seed).within
        assert within is not None
        hits += within.low <= 0 <= within.high
        pairs = by_loops(matrix, labels.tolist())[0]
        narrow += abs(fmean(pairs)) <= 1.96 * pstdev(pairs) / math.sqrt(len(pairs))
    assert hits >= 60 * 0.82  # 0.95 less what 12 groups cost, less three standard errors
    assert narrow < 40  # what pairs drawn apart would give


def test_one_group_has_a_mean_without_an_interval() -> None:
    means = group_means(symmetric(4, 0), ["same"] * 4)
    assert means.within is not None
    assert math.isnan(means.within.low)
    assert math.isnan(means.within.high)
    assert (means.across, means.difference) == (None, None)
    assert (means.groups, means.pairs_within, means.pairs_across) == (1, 6, 0)


def test_all_alone_have_only_pairs_across() -> None:
    means = group_means(symmetric(8, 0), range(8))
    assert (means.within, means.difference) == (None, None)
    assert means.across is not None
    assert means.across.low < means.across.value < means.across.high


def test_two_groups_have_no_interval_across() -> None:
    means = group_means(symmetric(6, 0), [0, 0, 0, 1, 1, 1])
    assert means.within is not None
    assert means.across is not None
    assert means.within.low < means.within.value < means.within.high
    assert math.isnan(means.across.low)
    assert not means.across.excludes_zero


def test_an_undefined_pair_is_in_the_mean_that_it_belongs_to() -> None:
    matrix = symmetric(6, 0)
    matrix[0, 1] = matrix[1, 0] = torch.nan
    means = group_means(matrix, [0, 0, 1, 1, 2, 2])
    assert means.within is not None
    assert means.across is not None
    assert math.isnan(means.within.value)
    assert means.across.value == pytest.approx(fmean(by_loops(matrix, [0, 0, 1, 1, 2, 2])[1]))
    matrix[0, 1] = torch.inf
    within = group_means(matrix, [0, 0, 1, 1, 2, 2]).within
    assert within is not None
    assert within.value == math.inf


def test_labels_are_texts_numbers_or_tensors() -> None:
    matrix = symmetric(6, 0)
    expected = group_means(matrix, ["x", "x", "y", "y", "z", "z"])
    for labels in (
        torch.tensor([5, 5, 3, 3, 9, 9]),
        np.array([5, 5, 3, 3, 9, 9]),
        [(0, 1)] * 2 + [None] * 2 + [2] * 2,
    ):
        assert group_means(matrix, labels) == expected
    assert group_means(matrix.half(), [0, 0, 1, 1, 2, 2]).pairs_within == 3
    assert isinstance(expected, GroupMeans)


@given(members=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_summary_by_loops(members: int, seed: int) -> None:
    matrix = symmetric(members, seed)
    values = {(i, j): float(matrix[i, j]) for i, j in combinations(range(members), 2)}
    got = summarise_pairs(matrix)
    assert isinstance(got, PairSummary)
    assert got.mean == pytest.approx(fmean(values.values()))
    assert got.std == pytest.approx(pstdev(values.values()), abs=1e-12)
    assert (got.minimum, got.maximum) == (min(values.values()), max(values.values()))
    assert got.minimum_pair == min(values, key=values.__getitem__)
    assert got.maximum_pair == max(values, key=values.__getitem__)
    assert (got.pairs, got.undefined) == (len(values), 0)


def test_extremes_are_of_the_pairs_that_are_defined() -> None:
    matrix = torch.tensor([[0.0, torch.nan, 2.0], [0.0, 0.0, torch.inf], [0.0, 0.0, 0.0]])
    got = summarise_pairs(matrix)
    assert math.isnan(got.mean)
    assert math.isnan(got.std)
    assert (got.minimum, got.minimum_pair) == (2, (0, 2))
    assert (got.maximum, got.maximum_pair) == (math.inf, (1, 2))
    assert (got.pairs, got.undefined) == (3, 1)
    nothing = summarise_pairs(torch.full((2, 2), torch.nan))
    assert math.isnan(nothing.minimum)
    assert math.isnan(nothing.maximum)
    assert (nothing.minimum_pair, nothing.maximum_pair, nothing.undefined) == (None, None, 1)


def test_what_has_no_pairs_or_other_labels() -> None:
    with pytest.raises(InputError, match="expected one group per member, got 2 for 3 members"):
        group_means(symmetric(3, 0), [0, 1])
    for measure in (summarise_pairs, lambda matrix: group_means(matrix, [0])):
        with pytest.raises(InputError, match=r"two members or more, got shape \(1, 1\)"):
            measure(torch.zeros(1, 1))
    with pytest.raises(InputError, match="level between 0 and 1"):
        group_means(symmetric(3, 0), [0, 0, 1], level=2.0)
