import math

import pytest
import torch

from mirepoix.training import Best, Check, Last, UniformAverage


def iterate(k, dtype=torch.float32):
    return {"w": torch.tensor([float(k), -1 / k], dtype=dtype), "count": torch.tensor(k)}


def walk(collector, updates, checks=()):
    live = iterate(1)
    for k in range(1, updates + 1):
        for name, value in iterate(k).items():
            live[name].copy_(value)  # the loop changes its weights in place
        collector.after_step(k, live)
        for step, score in checks:
            if step == k - 1:
                collector.after_check(Check(step, score, 1.0, {}), live)
    return live


@pytest.mark.parametrize(("start", "updates", "first"), [(100, 130, 99), (5, 5, 4), (1, 7, 1), (2, 7, 1)])
def test_uniform_average_is_the_mean_of_the_iterates_from_the_one_before_the_start(start, updates, first):
    collector = UniformAverage(start)
    live = walk(collector, updates)
    got = collector.weights(live)
    ks = range(first, updates + 1)
    expected = [math.fsum(ks) / len(ks), math.fsum(-1 / k for k in ks) / len(ks)]
    assert got["w"].tolist() == pytest.approx(expected, rel=1e-6)
    assert got["w"].dtype == torch.float32
    assert got["count"] == updates


def test_uniform_average_of_a_run_shorter_than_its_start_is_the_last_iterate():
    collector = UniformAverage(100)
    live = walk(collector, 50)
    assert torch.equal(collector.weights(live)["w"], iterate(50)["w"])


def test_uniform_average_is_rounded_once():
    collector = UniformAverage(1)
    values = [16777216.0, 1.0, 1.0]  # a float32 sum would lose both ones
    for k, value in enumerate(values, 1):
        theta = {"w": torch.tensor([value])}
        collector.after_step(k, theta)
    assert collector.weights(theta)["w"].item() == pytest.approx(sum(values) / 3, rel=1e-7)


def test_best_keeps_the_earliest_of_equal_scores():
    collector = Best()
    walk(collector, 6, checks=[(1, 0.5), (2, 0.8), (4, 0.8), (5, 0.7)])
    assert collector.check.step == 2
    assert collector.weights({})["w"][0] == 3  # after three updates


def test_last_copies_the_live_weights():
    collector = Last()
    live = walk(collector, 3)
    kept = collector.weights(live)
    live["w"].zero_()
    assert kept["w"][0] == 3


@pytest.mark.parametrize("make", [Best, Last, lambda: UniformAverage(3)])
def test_a_collector_continues_from_its_state(make):
    checks = [(1, 0.4), (6, 0.9)]
    whole = make()
    live = walk(whole, 9, checks)
    first, second = make(), make()
    walk(first, 5, checks)
    second.load(first.state())
    theta = iterate(1)
    for k in range(6, 10):
        for name, value in iterate(k).items():
            theta[name].copy_(value)
        second.after_step(k, theta)
        for step, score in checks:
            if step == k - 1:
                second.after_check(Check(step, score, 1.0, {}), theta)
    for name, value in whole.weights(live).items():
        assert torch.equal(second.weights(theta)[name], value)
