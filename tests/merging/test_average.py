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
from mirepoix.types import InputError


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


def copies(x, rule, count, **options):
    return merge([{"w": x}] * count, rule, **options)["w"]


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.bfloat16, 2.5e38), (torch.bfloat16, -3.3e38), (torch.float64, 1.5e308)]
)
@pytest.mark.parametrize("chunk", [1, None])
def test_a_mean_is_finite_where_the_sum_overflows(dtype, value, chunk):
    x = torch.tensor([1.0, value, 0.1], dtype=dtype)
    assert torch.equal(copies(x, None, 2, chunk=chunk), x)
    assert torch.equal(copies(x, Average([3.0, 1.0, 1.0]), 3, chunk=chunk), x)
    y = torch.tensor([2.0, value / 2, 0.3], dtype=dtype)
    found = merge([{"w": x}, {"w": y}, {"w": x}], chunk=chunk)["w"]
    exact = (x.double() / 3 + y.double() / 3 + x.double() / 3).to(dtype)
    torch.testing.assert_close(found[1], exact[1], rtol=1e-15, atol=0)
    plain = (x[::2] + y[::2] + x[::2]) / 3 if dtype is torch.float64 else None
    if plain is None:
        plain = ((x[::2].float() + y[::2].float() + x[::2].float()) / 3).to(dtype)
    assert torch.equal(found[::2], plain)  # the others are as ever


def test_overflow_of_the_result_itself_is_still_refused():
    x = {"w": torch.tensor([3e38], dtype=torch.bfloat16)}
    with pytest.raises(InputError, match=r"the dtype of the result overflows"):
        merge([x, x], Average([1.0, 1.0], normalize=False))
    bad = {"w": torch.tensor([float("inf")], dtype=torch.bfloat16)}
    with pytest.raises(InputError, match=r"member 1 holds NaN or infinity"):
        merge([x, bad])


@pytest.mark.parametrize("coefficient", [1e-300, 1e-50, 1e-40, 1e-10, 1e10, 1e40, 1e300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_only_the_proportions_of_coefficients_count_not_their_size(coefficient, dtype):
    random = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(100, generator=random), torch.tensor([6e-8, 1e-38, 1e-40, 6e4])]).to(dtype)
    y = torch.randn(104, generator=random).to(dtype)
    assert torch.equal(copies(x, Average([coefficient] * 3), 3), x)
    found = merge([{"w": x}, {"w": y}], Average([coefficient, 2 * coefficient]))["w"]
    expected = merge([{"w": x}, {"w": y}], Average([1.0, 2.0]))["w"]
    atol = 1e-15 if dtype is torch.float64 else 0  # which has no digits to spare where x + 2y cancels
    torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=atol)


def test_coefficients_far_apart_both_count_in_half_precision():
    a, b = {"w": torch.tensor([0.0]).bfloat16()}, {"w": torch.tensor([2.0**100]).bfloat16()}
    found = merge([a, b], Average([1.0, 2.0**-160]))["w"]
    assert float(found) == 2.0**-60


@pytest.mark.parametrize("count", [3, 7, 10])
@pytest.mark.parametrize(
    ("stored", "out"), [("float64", "float32"), ("float32", "bfloat16"), ("float32", "float16")]
)
def test_copies_are_rounded_as_one_member_is(stored, out, count):
    random = np.random.default_rng(0)
    x = random.standard_normal(20_000).astype(stored)
    # Ties of the narrow dtype, which the last digit of a sum would decide.
    bits = {"float32": 23, "bfloat16": 7, "float16": 10}[out]
    x[::2] = (np.ldexp(np.round(np.ldexp(1 + random.random(10_000), bits)) + 0.5, -bits)).astype(stored)
    x = torch.from_numpy(x)
    assert torch.equal(copies(x, Average([0.1] * count), count, dtype=out), x.to(getattr(torch, out)))
