"""Combiners of predictions: loops as the oracle, ties, and what probabilities lose that logarithms keep."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.ensembles import average_logits, average_probabilities, vote
from mirepoix.types import InputError

COMBINERS = [average_logits, average_probabilities, vote]


def draw_logits(members: int, count: int, classes: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(members, count, classes, generator=random, dtype=torch.float64)


shapes = {
    "members": st.integers(1, 6),
    "count": st.integers(1, 8),
    "classes": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
}


@given(**shapes)
def test_loops_agree(members: int, count: int, classes: int, seed: int) -> None:
    logits = draw_logits(members, count, classes, seed)
    z, log_p, elected = average_logits(logits), average_probabilities(logits), vote(logits)
    for n in range(count):
        p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits[:, n].tolist()]
        for k in range(classes):
            assert float(z[n, k]) == pytest.approx(sum(logits[:, n, k].tolist()) / members, abs=1e-12)
            assert float(log_p[n, k]) == pytest.approx(math.log(sum(row[k] for row in p) / members), abs=1e-9)
        votes = Counter(row.index(max(row)) for row in logits[:, n].tolist())
        ranked = sorted(range(classes), key=lambda k: (-votes[k], -sum(row[k] for row in p), k))
        assert int(elected[n]) == ranked[0]


@given(**shapes)
def test_the_average_of_logits_is_the_geometric_mean_of_probabilities(
    members: int, count: int, classes: int, seed: int
) -> None:
    logits = draw_logits(members, count, classes, seed)
    geometric = logits.softmax(-1).prod(0) ** (1 / members)
    geometric = geometric / geometric.sum(-1, keepdim=True)
    torch.testing.assert_close(average_logits(logits).softmax(-1), geometric)


@pytest.mark.parametrize("combine", COMBINERS)
@given(**shapes)
def test_members_are_symmetric_and_copies_change_nothing(
    combine: Any, members: int, count: int, classes: int, seed: int
) -> None:
    logits = draw_logits(members, count, classes, seed)
    torch.testing.assert_close(combine(logits.flip(0)), combine(logits))
    one = combine(logits[:1])
    torch.testing.assert_close(combine(logits[:1].expand(4, -1, -1)), one)
    if combine is average_probabilities:
        torch.testing.assert_close(one.exp().sum(-1), torch.ones(count, dtype=torch.float64))


def test_tiny_probabilities_do_not_vanish() -> None:
    logits = torch.tensor([[[0.0, -500.0]], [[0.0, -500.0]]])
    assert float(average_probabilities(logits)[0, 1]) == pytest.approx(-500)
    assert average_probabilities(torch.tensor([[[0.0, -math.inf]]]))[0, 1] == -math.inf


def test_ties_go_to_the_largest_sum_of_probabilities_then_to_the_first_class() -> None:
    unsure, sure = [0.1, 0.3, 0.2], [0.0, 0.0, 5.0]
    assert vote(torch.tensor([[unsure], [sure]])).tolist() == [2]
    assert vote(torch.tensor([[sure], [unsure]])).tolist() == [2]
    mirrored = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]]])
    assert vote(mirrored).tolist() == [1]
    assert vote(torch.zeros(3, 2, 4)).tolist() == [0, 0]
    # Class 0 has the largest sum of probabilities by far, and not one vote.
    assert vote(torch.tensor([[[4.0, 4.1, 0.0]], [[4.0, 0.0, 4.1]]])).tolist() == [1]


@pytest.mark.parametrize("combine", [average_logits, average_probabilities])
def test_half_precision_is_widened(combine: Any) -> None:
    logits = draw_logits(8, 5, 3, 0).bfloat16()
    assert combine(logits).dtype == torch.float32
    torch.testing.assert_close(combine(logits).double(), combine(logits.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", COMBINERS)
def test_no_member_is_an_error(combine: Any) -> None:
    with pytest.raises(InputError, match=r"at least one member, got \(0, 2, 3\)"):
        combine(torch.zeros(0, 2, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_member_without_an_argmax_cannot_vote(bad: float) -> None:
    logits = torch.zeros(3, 2, 2)
    logits[1, 0, 1] = bad
    with pytest.raises(InputError, match="member 1 cannot vote"):
        vote(logits)


@given(**shapes)
def test_weighted_means_are_those_of_loops(members: int, count: int, classes: int, seed: int) -> None:
    logits = draw_logits(members, count, classes, seed)
    raw = torch.rand(members, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares = (raw / raw.sum()).tolist()
    z, log_p = average_logits(logits, shares), average_probabilities(logits, shares)
    for n in range(count):
        p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits[:, n].tolist()]
        for k in range(classes):
            by_hand = sum(s * v for s, v in zip(shares, logits[:, n, k].tolist(), strict=True))
            assert float(z[n, k]) == pytest.approx(by_hand, abs=1e-12)
            by_hand = math.log(sum(s * row[k] for s, row in zip(shares, p, strict=True)))
            assert float(log_p[n, k]) == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("combine", [average_logits, average_probabilities])
def test_coefficients_at_a_corner_are_that_member_and_equal_ones_the_mean(combine: Any) -> None:
    logits = draw_logits(3, 5, 4, 0)
    torch.testing.assert_close(combine(logits, [0.0, 1.0, 0.0]), combine(logits[1:2]), rtol=0, atol=1e-12)
    torch.testing.assert_close(combine(logits, [1 / 3] * 3), combine(logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("combine", [average_logits, average_probabilities])
def test_a_member_of_no_weight_may_predict_anything(combine: Any) -> None:
    logits = torch.tensor([[[1.0, -math.inf]], [[0.0, 2.0]]])
    torch.testing.assert_close(combine(logits, [0.0, 1.0]), combine(logits[1:]))


@pytest.mark.parametrize("combine", [average_logits, average_probabilities])
@pytest.mark.parametrize("coefficients", [[1.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], []])
def test_coefficients_that_do_not_fit_are_told(combine: Any, coefficients: list[float]) -> None:
    with pytest.raises(InputError, match="one number for each of 2 members, none negative, with sum 1"):
        combine(draw_logits(2, 3, 4, 0), coefficients)
