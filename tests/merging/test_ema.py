"""The exponential moving average against its closed form."""

import numpy as np
import pytest
import torch

from mirepoix.merging import EMA, ExponentialAverage, merge
from mirepoix.types import InputError

VALUES = [3.0, -1.0, 4.0, 1.5]


def weights(value: float, dtype=np.float64) -> dict[str, np.ndarray]:
    return {
        "w": np.full(2, value, dtype),
        "bn.running_mean": np.full(1, 10 * value, dtype),
        "n": np.array(int(value)),
    }


def follow(ema: EMA, values=VALUES) -> dict[str, np.ndarray]:
    for value in values:
        ema.update(weights(value))
    return ema.weights()


def test_it_is_the_recursion_started_from_the_first_weights():
    expected = VALUES[0]
    for value in VALUES[1:]:
        expected = 0.9 * expected + 0.1 * value
    found = follow(EMA(0.9))
    np.testing.assert_allclose(found["w"], expected, rtol=1e-15)
    assert found["bn.running_mean"].tolist() == [15.0]  # the last
    assert int(found["n"]) == 1


def test_averaging_the_buffers_treats_them_like_parameters():
    found = follow(EMA(0.9, buffers="average"))
    np.testing.assert_allclose(found["bn.running_mean"], 10 * found["w"][:1], rtol=1e-14)


def test_from_zero_with_bias_correction_is_a_weighted_mean_of_what_was_seen():
    d, n = 0.7, len(VALUES)
    coefficients = np.array([(1 - d) * d ** (n - t) for t in range(1, n + 1)])
    expected = coefficients @ VALUES / coefficients.sum()
    np.testing.assert_allclose(follow(EMA(d, from_zero=True))["w"], expected, rtol=1e-14)
    np.testing.assert_allclose(follow(EMA(d, from_zero=True), [2.5])["w"], 2.5, rtol=1e-15)


def test_the_warm_up_forgets_early_weights_sooner():
    expected = VALUES[0]
    for t, value in enumerate(VALUES[1:], start=1):  # t counts the weights before
        d = min(0.15, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
    np.testing.assert_allclose(follow(EMA(0.15, warm_up=True))["w"], expected, rtol=1e-14)
    slow = follow(EMA(0.999, warm_up=True), [0.0, 1.0])
    np.testing.assert_allclose(slow["w"], 1 - 2 / 11, rtol=1e-14)


def test_the_rule_over_files_is_the_state_over_a_trajectory():
    members = [weights(value) for value in VALUES]
    members = [{name: x for name, x in theta.items() if name != "n"} for theta in members]
    for buffers in ("last", "average"):
        ema = EMA(0.8, buffers=buffers)
        for theta in members:
            ema.update(theta)
        found = merge(members, ExponentialAverage(0.8, buffers=buffers))
        for name, x in ema.weights().items():
            np.testing.assert_allclose(found[name], x, rtol=1e-14)


def test_the_rule_keeps_the_last_member_alone_without_decay():
    members = [{"w": np.float32([value])} for value in VALUES]
    assert merge(members, ExponentialAverage(0.0))["w"].tolist() == [1.5]


def test_half_precision_does_not_stop_moving():
    ema = EMA(0.999)
    ema.update({"w": torch.tensor([1.0], dtype=torch.bfloat16)})
    for _ in range(100):
        ema.update({"w": torch.tensor([2.0], dtype=torch.bfloat16)})
    assert ema.weights()["w"].dtype == torch.float32
    assert float(ema.weights()["w"]) == pytest.approx(2 - 0.999**100, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"warm_up": True, "from_zero": True, "buffers": "average"}])
def test_a_saved_state_continues_with_the_same_bits(options, tmp_path):
    whole, part = EMA(0.9, **options), EMA(0.9, **options)
    for value in VALUES[:2]:
        part.update(weights(value))
    part.save(tmp_path / "ema.safetensors")
    part = EMA.load(tmp_path / "ema.safetensors", framework="numpy")
    for value in VALUES:
        whole.update(weights(value))
    for value in VALUES[2:]:
        part.update(weights(value))
    for name, x in whole.weights().items():
        np.testing.assert_array_equal(part.weights()[name], x)
    assert part.count == 4


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    ema = EMA(0.9)
    with pytest.raises(InputError, match="seen no weights"):
        ema.weights()
    ema.update(weights(1.0))
    with pytest.raises(InputError, match="names differ"):
        ema.update({"v": np.zeros(2)})
    with pytest.raises(InputError, match="not finite"):
        ema.update(weights(1.0) | {"w": np.array([np.nan, 0])})
    assert ema.weights()["w"].tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match=r"decay: expected a number in \[0, 1\)"):
        EMA(1.0)
    with pytest.raises(InputError, match="buffers: expected 'last' or 'average'"):
        ExponentialAverage(0.5, buffers="first").check(["0"])
