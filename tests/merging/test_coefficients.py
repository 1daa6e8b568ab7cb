"""Coefficients by name, pattern and function."""

from fractions import Fraction

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
        ([1e308, 1e308], "their sum is too large"),
        ([0.0, 0.0], "expected a sum other than 0"),
        ([[("fc", 1.0)], 1.0], "no pattern of member 0 matches 'w'"),
        ([[("(", 1.0)], 1.0], "is not a regular expression"),
        ({"x": 1.0, "y": 2.0}, "expected the members '0', '1', got 'x', 'y'"),
        ({0: 1.0}, "expected the members '0', '1', got 0"),
        (0.5, "expected one per member, got 0.5"),
        ("0.5", "expected one per member, got '0.5'"),
        (np.float64(0.5), "expected one per member, got"),
        (iter([0.5, 0.5]), "expected one per member, got <list_iterator.*Put them in a list"),
        ({0.25, 0.75}, "expected one per member, got {"),
        (["0.5", "0.5"], "expected finite numbers, got '0.5'"),
        ([None, 1.0], "expected finite numbers, got None"),
        ([True, 1.0], "expected finite numbers, got True"),
        ([1j, 1.0], "expected finite numbers, got 1j"),
        (np.ones((2, 2)), "expected pairs of a pattern and a number"),
        ([[1.0, 2.0], 1.0], "expected pairs of a pattern and a number"),
        ([[("fc", "1")], 1.0], "expected finite numbers, got '1'"),
        ([lambda name: "1", 1.0], "expected finite numbers, got '1'"),
        (torch.tensor([1.0, float("inf")]), "expected finite numbers, got"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(coefficients, message):
    with pytest.raises(InputError, match=message):
        merge([{"w": np.zeros(2)}, {"w": np.ones(2)}], Average(coefficients))


@pytest.mark.parametrize(
    "coefficients",
    [
        (1, 3),
        np.array([1, 3], np.float32),
        np.array([1, 3]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([1, 3]),
        torch.tensor([1.0, 3.0], requires_grad=True),
        [np.float16(1), torch.tensor(3.0, dtype=torch.bfloat16)],
        [np.array(1.0), [("", np.float32(3))]],
        [lambda name: np.float32(1), lambda name: torch.tensor(3)],
        {"1": np.int64(3), "0": Fraction(1)},
    ],
    ids=repr,
)
def test_numbers_of_every_library_are_numbers(coefficients):
    members = [{"w": np.float32([1, 2])}, {"w": np.float32([5, 3])}]
    assert merge(members, Average(coefficients))["w"].tolist() == [4.0, 2.75]
