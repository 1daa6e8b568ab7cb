import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.training import Check, ExponentialAverage
from mirepoix.types import InputError


def closed_form(values, decay):
    """d^(T-1) theta_1 + sum over t from 2 of (1-d) d^(T-t) theta_t."""
    T = len(values)
    later = sum((1 - decay) * decay ** (T - t) * values[t - 1] for t in range(2, T + 1))
    return decay ** (T - 1) * values[0] + later


def walk(collector, values, theta=None, begin=0):
    theta = theta or {
        "w": torch.empty(2),
        "double": torch.empty(2, dtype=torch.float64),
        "half": torch.empty(2, dtype=torch.bfloat16),
        "batches": torch.tensor(0),
    }
    for update, value in enumerate(values[begin:], begin + 1):
        for name in ("w", "double", "half"):
            theta[name].copy_(torch.tensor([value, -value]))
        theta["batches"].fill_(update)
        collector.after_step(update, theta)
        collector.after_check(Check(update - 1, 0.5, 1.0, {}), theta)
    return theta


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.999]),
)
def test_the_exponential_average_is_its_closed_form(values, decay):
    collector = ExponentialAverage(decay)
    theta = walk(collector, values)
    got = collector.weights(theta)
    expected = closed_form(values, decay)
    assert got["double"].tolist() == pytest.approx([expected, -expected], rel=1e-12, abs=1e-12)
    assert got["w"].tolist() == pytest.approx([expected, -expected], rel=1e-6, abs=1e-6)
    assert got["batches"] == len(values)
    assert {name: value.dtype for name, value in got.items()} == {n: v.dtype for n, v in theta.items()}


def test_the_default_decay_is_the_usual_one():
    assert ExponentialAverage().decay == 0.999


def test_the_exponential_average_is_rounded_once():
    collector = ExponentialAverage(0.999)
    theta = {"w": torch.tensor([1.0])}
    collector.after_step(1, theta)
    theta["w"][0] = 1 + 2**-16  # moves a float32 average by less than half a unit
    for update in range(2, 2002):
        collector.after_step(update, theta)
    expected = 1 + 2**-16 * (1 - 0.999**2000)
    assert collector.weights(theta)["w"].item() == pytest.approx(expected, abs=6e-8)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    data=st.data(),
)
def test_the_exponential_average_continues_from_its_state_with_the_same_bits(values, data):
    cut = data.draw(st.integers(0, len(values)))
    whole, first, second = (ExponentialAverage(0.9) for _ in range(3))
    theta = walk(whole, values)
    walk(first, values[:cut])
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    buffer.seek(0)
    second.load(torch.load(buffer, weights_only=True))
    walk(second, values, begin=cut)
    expected, got = whole.weights(theta), second.weights(theta)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_loading_leaves_the_state_as_it_was():
    first, second = ExponentialAverage(0.5), ExponentialAverage(0.5)
    walk(first, [1.0, 2.0])
    state = first.state()
    before = [mean.clone() for mean in state["average"]]
    second.load(state)
    walk(second, [1.0, 2.0, 8.0], begin=2)
    assert all(map(torch.equal, state["average"], before))


def test_the_weights_do_not_change_with_later_updates():
    collector = ExponentialAverage(0.5)
    theta = walk(collector, [1.0, 2.0])
    got = collector.weights(theta)
    walk(collector, [1.0, 2.0, 9.0], theta, begin=2)
    assert got["double"].tolist() == [1.5, -1.5]


def test_before_the_first_update_it_is_a_copy_of_the_live_weights():
    theta = {"w": torch.ones(1)}
    got = ExponentialAverage().weights(theta)
    theta["w"].zero_()
    assert got["w"] == 1


def test_of_a_linear_network_it_predicts_the_average_of_the_predictions():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    images, labels = torch.randn(32, 4), torch.randint(3, (32,))
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    theta, collector, outputs = network.state_dict(), ExponentialAverage(0.8), []
    for update in range(1, 15):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        collector.after_step(update, theta)
        outputs.append(network(images).detach().double())
    network.load_state_dict(collector.weights(theta))
    expected = closed_form(outputs, 0.8)
    torch.testing.assert_close(network(images).detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match=rf"lies in \[0, 1\), got {decay}; 0\.999"):
        ExponentialAverage(decay)
