"""The line: its ends, its middle and what lies beyond."""

import numpy as np
import pytest
import torch
from tests.merging.samples import bits, network

from mirepoix.merging import Interpolation, Ties, merge
from mirepoix.types import InputError


def test_interpolation_ends_are_the_members_exactly_and_the_middle_is_not_skipped():
    a, b = network(1), network(2)
    a["bn.num_batches_tracked"] = b["bn.num_batches_tracked"] = torch.tensor(1)
    assert bits(merge([a, b], Interpolation(0.0))) == bits(a)
    assert bits(merge([a, b], Interpolation(1.0))) == bits(b)
    quarter = merge([a, b], Interpolation(0.25))["fc.bias"]
    expected = (0.75 * a["fc.bias"].double() + 0.25 * b["fc.bias"].double()).float()
    assert torch.equal(quarter, expected)
    with pytest.raises(InputError, match=r"expected a number in \[0, 1\], got 1.5"):
        merge([a, b], Interpolation(1.5))
    beyond = merge([a, b], Interpolation(1.5, extrapolate=True))["fc.bias"]
    torch.testing.assert_close(beyond, 1.5 * b["fc.bias"] - 0.5 * a["fc.bias"])
    with pytest.raises(InputError, match=r"expected two members, got 3"):
        merge([a, b, a], Interpolation(0.5))


def test_negative_variances_are_raised_to_zero_and_said():
    a, b = {"bn.running_var": np.float32([1.0, 4.0])}, {"bn.running_var": np.float32([3.0, 4.0])}
    with pytest.warns(UserWarning, match=r"raised to 0 in 'bn.running_var'"):
        found = merge([a, b], Interpolation(-1.0, extrapolate=True))
    assert found["bn.running_var"].tolist() == [0.0, 4.0]


def test_rules_that_are_not_linear_raise_negative_variances_too():
    base, a = {"bn.running_var": np.float32([1.0, 4.0])}, {"bn.running_var": np.float32([0.5, 5.0])}
    with pytest.warns(UserWarning, match=r"raised to 0 in 'bn.running_var'"):
        found = merge([a], Ties(density=1.0, scale=4.0), base=base)
    assert found["bn.running_var"].tolist() == [0.0, 8.0]
