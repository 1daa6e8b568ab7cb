"""Task arithmetic by hand."""

import numpy as np
import pytest

from mirepoix.merging import TaskArithmetic, merge
from mirepoix.types import InputError


def test_task_arithmetic_moves_the_base_along_the_differences():
    base, a, b = {"w": np.float32([1, 1])}, {"w": np.float32([2, 1])}, {"w": np.float32([1, 5])}
    found = merge([a, b], TaskArithmetic([2.0, -0.5]), base=base)["w"]
    np.testing.assert_array_equal(found, np.float32([1 + 2 * 1, 1 - 0.5 * 4]))
    halved = merge([a, b], TaskArithmetic([2.0, -0.5], scale=0.5), base=base)["w"]
    np.testing.assert_array_equal(halved, np.float32([2, 0]))
    same = merge([a, b], TaskArithmetic([0.5, 0.5]), base=base)["w"]
    np.testing.assert_array_equal(same, merge([a, b])["w"])
    with pytest.raises(InputError, match=r"needs the common start"):
        merge([a, b], TaskArithmetic([1.0, 1.0]))
