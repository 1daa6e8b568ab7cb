"""Linear rules: `combine` and the engine's running sum are one computation."""

import numpy as np
import pytest

from mirepoix.merging import (
    Average,
    ExponentialAverage,
    Interpolation,
    LinearRule,
    Piece,
    TaskArithmetic,
    merge,
)

MEMBERS = [np.random.default_rng(i).standard_normal(50) for i in range(2)]
BASE = np.random.default_rng(9).standard_normal(50)


@pytest.mark.parametrize(
    "rule",
    [Average([0.3, 0.9]), Interpolation(0.2), TaskArithmetic([0.4, -2.0]), ExponentialAverage(0.9)],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_combine_gives_the_bits_of_the_engine(rule, dtype):
    assert isinstance(rule, LinearRule)
    members, base = [x.astype(dtype) for x in MEMBERS], BASE.astype(dtype)
    expected = merge([{"w": x} for x in members], rule, base={"w": base})["w"]
    wide = [x.astype(np.float64) for x in members]
    found = rule.combine(Piece("w", (50,), 0, 50), wide, base.astype(np.float64), ["0", "1"])
    np.testing.assert_array_equal(found.astype(dtype), expected)


def test_combine_leaves_its_arguments_as_they_are():
    members = [x.copy() for x in MEMBERS]
    Average().combine(Piece("w", (50,), 0, 50), members, None, ["0", "1"])
    for x, y in zip(members, MEMBERS, strict=True):
        np.testing.assert_array_equal(x, y)
