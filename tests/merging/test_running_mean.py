"""The running mean is the mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirepoix.merging import RunningMean
from mirepoix.types import InputError


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_it_is_the_mean_of_what_was_given(values):
    mean = RunningMean()
    for value in values:
        mean.update({"w": np.array([value])})
    np.testing.assert_allclose(mean.weights()["w"], np.mean(values), rtol=1e-12, atol=1e-12)
    assert mean.count == len(values)


def test_half_precision_is_kept_in_float32_and_integers_from_the_last():
    mean = RunningMean()
    for value in (1.0, 2.0, 4.0):
        mean.update({"w": torch.tensor([value], dtype=torch.float16), "n": torch.tensor(int(value))})
    found = mean.weights()
    assert found["w"].dtype == torch.float32
    assert float(found["w"]) == pytest.approx(7 / 3, rel=1e-6)
    assert int(found["n"]) == 4


def test_a_saved_state_continues_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    thetas = [{"w": rng.standard_normal(5).astype(np.float32)} for _ in range(5)]
    whole, part = RunningMean(), RunningMean()
    for theta in thetas:
        whole.update(theta)
    for theta in thetas[:3]:
        part.update(theta)
    part.save(tmp_path / "mean.safetensors")
    part = RunningMean.load(tmp_path / "mean.safetensors", framework="numpy")
    for theta in thetas[3:]:
        part.update(theta)
    np.testing.assert_array_equal(part.weights()["w"], whole.weights()["w"])


def test_weights_do_not_change_with_the_next_update():
    mean = RunningMean()
    mean.update({"w": np.ones(1)})
    before = mean.weights()
    mean.update({"w": np.full(1, 3.0)})
    assert before["w"].tolist() == [1.0]
    assert mean.weights()["w"].tolist() == [2.0]


def test_what_does_not_fit_is_refused(tmp_path):
    from mirepoix import write_weights

    mean = RunningMean()
    with pytest.raises(InputError, match="seen no weights"):
        mean.weights()
    mean.update({"w": np.ones(1)})
    with pytest.raises(InputError, match="names differ"):
        mean.update({"v": np.ones(1)})
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(1)})
    with pytest.raises(InputError, match="expected a saved state"):
        RunningMean.load(tmp_path / "w.safetensors")
