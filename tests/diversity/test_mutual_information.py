"""Mutual information: entropies by a loop, and members that say the same or nothing in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from mirepoix.diversity._mutual_information import mutual_information
from mirepoix.types import InputError

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 12),
    "classes": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
    "holes": st.sampled_from([0.0, 0.2]),
}


def draw(members: int, samples: int, classes: int, seed: int, holes: float = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    gone = torch.rand(members, samples, classes, generator=generator) < holes
    gone[:, :, 0] = False
    return logits.masked_fill(gone, -torch.inf)


def by_loops(logits: torch.Tensor) -> float:
    p = logits.double().softmax(-1).numpy()
    members, samples, _ = p.shape
    total = 0.0
    for n in range(samples):
        total += entropy(p[:, n].mean(0)) - sum(entropy(p[i, n]) for i in range(members)) / members
    return total / samples


@given(**drawn)
def test_a_loop_agrees(**shape: Any) -> None:
    logits = draw(**shape)
    assert float(mutual_information(logits)) == pytest.approx(by_loops(logits), rel=1e-9, abs=1e-12)


@given(**drawn)
def test_members_and_samples_have_no_order(**shape: Any) -> None:
    logits = draw(**shape)
    order = torch.randperm(logits.shape[1], generator=torch.Generator().manual_seed(shape["seed"]))
    got = mutual_information(logits.flip(0)[:, order])
    torch.testing.assert_close(got, mutual_information(logits), rtol=1e-9, atol=1e-12)


def test_members_that_exclude_each_other_give_the_logarithm_of_their_number() -> None:
    logits = torch.full((3, 2, 3), -torch.inf)
    logits[range(3), :, range(3)] = 0
    assert float(mutual_information(logits)) == pytest.approx(math.log(3))


def test_copies_give_zero() -> None:
    logits = draw(1, 10, 5, 0).expand(4, 10, 5)
    assert 0 <= float(mutual_information(logits)) < 1e-14
    assert 0 <= float(mutual_information(logits.float())) < 1e-6


def test_half_precision_is_widened_first() -> None:
    logits = draw(3, 20, 5, 0).half()
    got = mutual_information(logits)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(by_loops(logits), abs=1e-6)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        mutual_information(torch.zeros(1, 3, 2))
    with pytest.raises(InputError, match="the largest of member 0 for sample 0 is nan"):
        mutual_information(torch.full((2, 3, 2), torch.nan))
