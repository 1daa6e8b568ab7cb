import numpy as np
import pytest
from tests.merging.driver import InputsOf, example, start

from mirepoix.merging._gram import cosines, gram, products


@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("block", [5, 65_536])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_inner_products_are_those_of_the_whole_tensors(deltas, block, dtype):
    members, base = [example(i, dtype=dtype) for i in (1, 2, 3)], start(dtype)
    for name in members[0]:
        found = gram(InputsOf(members, base, block).tensor(name), deltas=deltas)
        rows = np.array(
            [m[name].astype("f8").ravel() - deltas * base[name].astype("f8").ravel() for m in members]
        )
        np.testing.assert_allclose(found, np.einsum("ik,jk->ij", rows, rows), rtol=1e-12, atol=1e-14)


def test_products_along_the_last_axis_give_one_table_per_row():
    random = np.random.default_rng(0)
    x, y, base = random.normal(size=(3, 4, 6))
    np.testing.assert_allclose(products([x, y], base)[0, 1], ((x - base) * (y - base)).sum(1))
    assert products([x, y]).shape == (2, 2, 4)


def test_cosines_are_exact_for_copies_and_zero_for_zero_vectors():
    random = np.random.default_rng(0)
    for size in (1e-150, 1e-30, 0.1, 3.0, 1e150):
        square = size * random.uniform(1, 2)
        np.testing.assert_array_equal(cosines(np.full((2, 2), square)), 1.0)
        np.testing.assert_array_equal(
            cosines(square * np.array([[1.0, -1.0], [-1.0, 1.0]])), [[1, -1], [-1, 1]]
        )
    np.testing.assert_array_equal(cosines(np.array([[0.0, 0.0], [0.0, 2.0]])), [[0, 0], [0, 1]])
    np.testing.assert_allclose(cosines(np.array([[4.0, 3.0], [3.0, 9.0]])), [[1, 0.5], [0.5, 1]])
    assert np.isnan(cosines(np.array([[np.nan, np.nan], [np.nan, 1.0]]))[0, 1])
