"""Widening and the one rounding, against torch and against exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirepoix.merging._inputs import Source, narrow, open_source, wide_dtype, widen
from mirepoix.types import InputError


def bfloat16_values() -> np.ndarray:
    """All finite bfloat16, as float32, in increasing order."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    values = bits.view(np.float32)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_every_float8_widens_to_the_value_torch_gives(code):
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[code]
    every = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(every).view(dtype).float().numpy()
    np.testing.assert_array_equal(widen(code, every, np.empty(256, np.float32)), expected)


def test_every_bfloat16_survives_the_way_there_and_back():
    bits = np.arange(1 << 16, dtype=np.uint32).astype("<u2")
    wide = widen("BF16", bits, np.empty(bits.size, np.float32))
    np.testing.assert_array_equal(
        wide, torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    )
    again = narrow("BF16", wide)
    numbers = ~np.isnan(wide)
    np.testing.assert_array_equal(again[numbers], bits[numbers])
    assert np.isnan(widen("BF16", again, np.empty(bits.size, np.float32))[~numbers]).all()


def test_float32_rounds_to_bfloat16_as_torch_rounds_it():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 300_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([x[~np.isnan(x)], np.float32([np.inf, -np.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45])])
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(narrow("BF16", x), expected)


@settings(deadline=None, max_examples=300)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-3e38, max_value=3e38))
def test_float64_rounds_to_the_nearest_bfloat16_at_once(x):
    values = bfloat16_values()
    i = int(np.searchsorted(values.astype(np.float64), x))
    around = values[max(0, i - 1) : i + 2]
    errors = [abs(Fraction(float(v)) - Fraction(x)) for v in around]
    found = widen("BF16", narrow("BF16", np.array([x])), np.empty(1, np.float32))[0]
    if not np.isinf(found):
        assert abs(Fraction(float(found)) - Fraction(x)) == min(errors)


def test_a_tie_of_float32_that_was_none_in_float64_goes_up():
    # 1 + 2**-8 lies in the middle between two bfloat16; a little more must round up, and to float32 first would not.
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40])
    found = widen("BF16", narrow("BF16", x), np.empty(3, np.float32))
    np.testing.assert_array_equal(found, np.float32([1 + 2.0**-7, 1.0, 1 + 2.0**-7]))


@pytest.mark.parametrize(("codes", "dtype"), [(["F16", "BF16"], np.float32), (["BF16", "F32"], np.float64)])
def test_the_dtype_to_compute_in_is_that_of_the_widest(codes, dtype):
    assert wide_dtype(codes) is dtype


def test_a_source_reads_the_same_pieces_from_torch_numpy_and_files(tmp_path):
    from mirepoix import write_weights

    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "x.safetensors"
    write_weights(path, {"w": x})
    for weights in ({"w": x}, {"w": x.numpy()}, path, {"w": x.t().contiguous().t()}):
        source = open_source(weights, "it")
        np.testing.assert_array_equal(source.wide("w", 3, 20), x.flatten()[3:20].double().numpy())
        assert (source.code("w"), source.shape("w"), source.names) == ("F32", (7, 5), ["w"])
        assert bytes(source.bytes("w")) == x.numpy().tobytes()
        source.close()


def test_renaming_is_applied_in_order_and_must_keep_names_apart():
    theta = {"module.a": np.zeros(1), "module.b": np.ones(1)}
    source = Source(theta, "it", {"^module.": "", "^b$": "c"})
    assert source.names == ["a", "c"]
    assert source.wide("c", 0, 1).tolist() == [1]
    with pytest.raises(InputError, match=r"rename makes 'module.a' and 'module.b' both 'x'"):
        Source(theta, "it", {"^.*$": "x"})
    with pytest.raises(InputError, match=r"is not a substitution"):
        Source(theta, "it", {"(": "x"})


def test_what_is_no_member_is_refused():
    with pytest.raises(InputError, match=r"expected weights by name or the path of a file, got int"):
        open_source(3, "member 0")
    with pytest.raises(InputError, match=r"names that are text"):
        open_source({1: np.zeros(1)}, "member 0")
