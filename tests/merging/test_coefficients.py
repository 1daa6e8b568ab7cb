"""Coefficients by name, pattern and function."""

import numpy as np
import pytest
import torch
from tests.merging.samples import bits, network

from mirepoix.merging import Average, merge
from mirepoix.types import InputError


def test_coefficients_by_name_by_pattern_and_by_function_mean_the_same():
    members = {"first": network(1), "second": network(2)}
    pattern = [("^fc", 3.0), ("", 1.0)]
    by_list = merge(list(members.values()), Average([pattern, 1.0]))
    by_name = merge(members, Average({"second": 1.0, "first": pattern}))
    by_function = merge(members, Average([lambda name: 3.0 if name.startswith("fc") else 1.0, 1.0]))
    assert bits(by_list) == bits(by_name) == bits(by_function)
    w = [x["fc.bias"].double() for x in members.values()]
    torch.testing.assert_close(by_list["fc.bias"], ((3 * w[0] + w[1]) / 4).float(), rtol=0, atol=0)
    w = [x["conv.weight"].double() for x in members.values()]
    torch.testing.assert_close(by_list["conv.weight"], ((w[0] + w[1]) / 2).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([1.0], "expected one coefficient per member, got 1 for 2 members"),
        ([1.0, float("nan")], "expected finite numbers, got nan"),
        ([1.0, -1.0], "expected none below 0, got -1"),
        ([0.0, 0.0], "expected a sum other than 0"),
        ([[("fc", 1.0)], 1.0], "no pattern of member 0 matches 'w'"),
        ([[("(", 1.0)], 1.0], "is not a regular expression"),
        ({"x": 1.0, "y": 2.0}, "expected the members 0, 1, got x, y"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(coefficients, message):
    with pytest.raises(InputError, match=message):
        merge([{"w": np.zeros(2)}, {"w": np.ones(2)}], Average(coefficients))
