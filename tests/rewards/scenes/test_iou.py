import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards.scenes._iou import intersection_over_union
from mirepoix.types import InputError

edges = st.tuples(st.integers(0, 9), st.integers(1, 6)).map(lambda edge: (edge[0], sum(edge)))
boxes = st.tuples(edges, edges).map(lambda box: (box[0][0], box[1][0], box[0][1], box[1][1]))


def by_cells(one, two):
    """Unit squares of a grid, counted."""
    cells = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (one, two)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=5))
def test_values_are_those_of_counted_cells(pairs):
    first, second = zip(*pairs, strict=True)
    expected = [by_cells(one, two) for one, two in pairs]
    np.testing.assert_allclose(intersection_over_union(first, second), expected, rtol=1e-12)


@given(boxes, boxes, st.integers(-5, 5), st.floats(0.1, 10))
def test_it_is_symmetric_and_blind_to_shift_and_scale(one, two, shift, scale):
    value = intersection_over_union(one, two)
    assert intersection_over_union(two, one) == value
    assert intersection_over_union(one, one) == 1
    moved = [(np.array(box) + shift) * scale for box in (one, two)]
    assert intersection_over_union(*moved) == pytest.approx(value, abs=1e-9)


def test_shapes_broadcast():
    many = np.array([[[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]]])
    found = intersection_over_union(many, [0, 0, 2, 2])
    assert found.shape == (1, 3)
    np.testing.assert_allclose(found, [[1, 1 / 3, 0]])
    assert intersection_over_union(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)


def test_bad_boxes_are_named():
    good = [0, 0, 1, 1]
    with pytest.raises(InputError, match=r"others: expected x0 < x1 and y0 < y1, got \[1.0, 0.0, 1.0, 2.0\]"):
        intersection_over_union([good, good], [good, [1, 0, 1, 2]])
    with pytest.raises(InputError, match=r"boxes: expected x0 < x1 and y0 < y1, got .*inf"):
        intersection_over_union([0, 0, np.inf, 1], good)
    with pytest.raises(
        InputError, match=r"boxes: expected x0, y0, x1, y1 along the last axis, got the shape \(3,\)"
    ):
        intersection_over_union([0, 0, 1], good)
    with pytest.raises(InputError, match="a shape that broadcasts"):
        intersection_over_union([good] * 2, [good] * 3)
