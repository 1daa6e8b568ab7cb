"""The average against exact arithmetic and against the functions on weights."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.merging.samples import bits, network

from mirepoix import average, interpolate
from mirepoix.merging import Average, merge


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 20)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_the_average_of_float32_is_the_rounded_float64_mean(x):
    expected = np.zeros(x.shape[1])
    for row in x:
        expected = expected + row.astype(np.float64)
    found = merge([{"w": row} for row in x])["w"]
    np.testing.assert_array_equal(found, (expected / len(x)).astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=9))
def test_the_average_of_few_small_float32_is_the_exact_mean_rounded_once(values):
    exact = sum(map(Fraction, values)) / len(values)
    found = Fraction(float(merge([{"w": np.float32([v])} for v in values])["w"][0]))
    near = np.float32(float(exact))
    around = [
        Fraction(float(v))
        for v in (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    ]
    assert abs(found - exact) == min(abs(v - exact) for v in around)


def test_the_average_of_bfloat16_goes_through_float32():
    members = [torch.randn(50_000, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(8)]
    expected = (sum(x.float() for x in members) / 8).bfloat16()
    assert torch.equal(merge([{"w": x} for x in members])["w"], expected)


@pytest.mark.parametrize("coefficients", [None, [0.5, 0.25, 0.25]])
def test_the_engine_and_the_functions_on_weights_agree_to_the_bit(coefficients):
    members = [network(seed) for seed in (1, 2, 3)]
    expected = average(members) if coefficients is None else interpolate(members, coefficients)
    assert bits(merge(members, Average(coefficients))) == bits(expected)


def test_a_sum_without_normalisation_is_a_sum():
    members = [{"w": np.float32([2.0])}, {"w": np.float32([3.0])}]
    assert merge(members, Average([2.0, 0.5], normalize=False))["w"].tolist() == [5.5]
    assert merge([members[0]] * 2, Average([2.0, 0.5], normalize=False))["w"].tolist() == [5.0]


def test_a_member_without_weight_is_not_read(tmp_path):
    class Counting(dict):
        reads = 0

        def __getitem__(self, name):
            Counting.reads += 1
            return super().__getitem__(name)

    a, b = {"w": np.ones(3)}, Counting(w=np.full(3, np.nan))
    merge([a, b], Average([1.0, 0.0]))
    assert Counting.reads <= 1  # its dtype and shape must be seen, its values are not used
