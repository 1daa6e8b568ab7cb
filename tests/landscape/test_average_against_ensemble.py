"""Averaged weights against the ensemble: a linear model, a smooth network, and dots by hand."""

from __future__ import annotations

import json
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from mirepoix.ensembles import average_logits
from mirepoix.landscape._average_against_ensemble import average_against_ensemble, compare_on_subsets
from mirepoix.landscape._locality import locality
from mirepoix.metrics import accuracy, nll
from mirepoix.types import InputError
from mirepoix.weights import average


def network(activation):
    """A small network, and members around one start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 3)).double()
    start = model.state_dict()
    members = [
        {name: value + 0.3 * torch.randn_like(value) for name, value in start.items()} for _ in range(4)
    ]
    x = torch.randn(50, 4).double()

    def predict(theta):
        with torch.no_grad():
            return functional_call(model, theta, (x,))

    return members, predict


def test_of_a_smooth_network_the_difference_is_of_second_order():
    members, predict = network(nn.Tanh)
    found = average_against_ensemble(members, predict, scales=(0.1, 0.05, 0.025, 0.0125))
    assert found.slope == pytest.approx(2, abs=0.02)
    assert found.slopes[-1] == pytest.approx(2, abs=0.005)
    assert found.differences[0] / found.differences[1] == pytest.approx(4, rel=0.03)
    # From afar it comes nearer to 2.
    far = average_against_ensemble(members, predict)
    gaps = [abs(slope - 2) for slope in far.slopes]
    assert gaps == sorted(gaps, reverse=True)
    assert [round(d / e, 12) for d, e in zip(far.delta_squared, far.delta_squared[1:], strict=False)] == [
        4,
        4,
        4,
    ]
    assert far.delta_squared[0] == pytest.approx(locality(members).squared)


def test_the_difference_by_a_loop():
    members, predict = network(nn.Tanh)
    centre = average(members)
    found = average_against_ensemble(members, predict, scales=(1.0, 0.3))
    for scale, difference in zip(found.scales, found.differences, strict=True):
        ensemble = sum(
            predict({name: centre[name] + scale * (theta[name] - centre[name]) for name in centre})
            for theta in members
        ) / len(members)
        expected = float((predict(centre) - ensemble).norm(dim=1).mean())
        assert difference == pytest.approx(expected, rel=1e-9)
    logs = np.log(found.scales), np.log(found.differences)
    assert found.slope == pytest.approx(np.polyfit(*logs, 1)[0])
    assert found.slope == pytest.approx(found.slopes[0])


def test_a_kink_is_of_first_order():
    """|w| between -1 and 3: the average is at 1, the members at scale t at 1 - 2t and 1 + 2t."""
    members = [{"w": np.array([-1.0])}, {"w": np.array([3.0])}]
    found = average_against_ensemble(members, lambda theta: np.abs(theta["w"] - 1.0), scales=(1, 0.5, 0.25))
    assert found.differences == pytest.approx((2, 1, 0.5))
    assert found.slopes == pytest.approx((1, 1))
    assert found.slope == pytest.approx(1)


def test_of_a_linear_model_the_average_is_the_ensemble():
    random = np.random.default_rng(0)
    x = random.integers(-4, 5, size=(20, 3)).astype(float)
    members = [{"w": random.integers(-8, 8, size=(3, 2)).astype(float)} for _ in range(4)]
    found = average_against_ensemble(members, lambda theta: x @ theta["w"], scales=(1, 0.5, 0.25))
    assert found.differences == (0, 0, 0)  # exactly: all numbers here are short binary fractions
    assert math.isnan(found.slope)
    assert all(math.isnan(slope) for slope in found.slopes)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["slope"] is None
    assert content["differences"] == [0, 0, 0]
    dots = compare_on_subsets(
        [{name: torch.from_numpy(value) for name, value in member.items()} for member in members],
        lambda theta: torch.from_numpy(x) @ theta["w"],
        torch.from_numpy(random.integers(2, size=20)),
        metric=nll,
    )
    assert len(dots) == 11  # all subsets of two members or more
    assert all(dot.average == pytest.approx(dot.ensemble, abs=1e-12) for dot in dots)


def test_one_set_of_weights_lives_at_a_time_and_what_was_given_stays():
    members, predict = network(nn.Tanh)
    kept = [{name: value.clone() for name, value in member.items()} for member in members]
    alive, told = [], []

    def spoil(theta):
        assert [each() for each in alive] == [None] * len(alive)
        found = predict(theta).clone()
        alive.append(weakref.ref(theta["0.weight"]))
        for value in theta.values():
            value.zero_()
        return found

    found = average_against_ensemble(
        members, spoil, scales=(1, 0.5), progress=lambda *args: told.append(args)
    )
    assert found == average_against_ensemble(members, predict, scales=(1, 0.5))
    assert told == [(i, 9) for i in range(1, 10)]
    alive.clear()
    compare_on_subsets(members, spoil, torch.zeros(50, dtype=torch.long), subsets=[(0, 1)])
    assert all(torch.equal(a[name], b[name]) for a, b in zip(members, kept, strict=True) for name in a)


def test_half_precision_is_widened_before_it_is_brought_closer():
    members, predict = network(nn.Tanh)
    half = [{name: value.bfloat16() for name, value in member.items()} for member in members]
    wide = [{name: value.double() for name, value in member.items()} for member in half]
    seen = set()

    def of_float(theta):
        seen.update(value.dtype for value in theta.values())
        return predict({name: value.double() for name, value in theta.items()})

    found = average_against_ensemble(half, of_float)
    assert seen == {torch.float32}
    assert found.differences == pytest.approx(average_against_ensemble(wide, predict).differences, rel=1e-4)
    arrays = [{name: value.half().numpy() for name, value in member.items()} for member in members]
    sums = average_against_ensemble(arrays, lambda theta: np.tanh(theta["0.weight"]))
    assert sums.slope > 1.5


def test_batch_norm_and_its_counter_take_part():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    members = []
    for i in range(2):
        theta = {name: value.clone() for name, value in model.state_dict().items()}
        theta["1.running_mean"] += i
        theta["1.running_var"] += i
        theta["1.num_batches_tracked"] += 5 * i
        members.append(theta)
    x = torch.randn(6, 3).double()
    found = average_against_ensemble(
        members, lambda theta: functional_call(model, theta, (x,)).detach(), scales=(0.1, 0.05)
    )
    assert found.slope == pytest.approx(2, abs=0.05)
    assert found.delta_squared == (0, 0)  # distances leave out statistics
    assert average_against_ensemble(
        members, lambda t: functional_call(model, t, (x,)).detach(), scales=(2.0,)
    )


# Many subsets.


def classifiers():
    torch.manual_seed(0)
    x = torch.randn(60, 5).double()
    labels = torch.randint(3, (60,))
    members = [{"w": torch.randn(5, 3).double()} for _ in range(4)]
    return members, lambda theta: (x @ theta["w"]).relu(), labels


def test_each_dot_is_the_score_of_the_average_and_that_of_the_ensemble():
    members, predict, labels = classifiers()
    told = []
    dots = compare_on_subsets(
        members,
        predict,
        labels,
        subsets=[(0,), (3, 1), (0, 1, 2, 3)],
        progress=lambda *args: told.append(args),
    )
    assert [dot.members for dot in dots] == [(0,), (3, 1), (0, 1, 2, 3)]
    for dot in dots:
        chosen = [members[i] for i in dot.members]
        assert dot.average == float(accuracy(predict(average(chosen)), labels))
        logits = torch.stack([predict(theta) for theta in chosen])
        assert dot.ensemble == float(accuracy(average_logits(logits), labels))
    assert dots[0].average == dots[0].ensemble
    assert dots[2].average != dots[2].ensemble
    assert told == [(i, 7) for i in range(1, 8)]
    assert dots[1].to_dict() == {"members": [3, 1], "average": dots[1].average, "ensemble": dots[1].ensemble}


def test_drawn_subsets_are_different_of_the_sizes_asked_for_and_depend_on_the_seed():
    members, predict, labels = classifiers()
    dots = compare_on_subsets(members, predict, labels, sizes=[2, 3], count=6)
    chosen = [dot.members for dot in dots]
    assert len(set(chosen)) == 6
    assert {len(each) for each in chosen} == {2, 3}
    assert dots == compare_on_subsets(members, predict, labels, sizes=[2, 3], count=6)
    other = compare_on_subsets(members, predict, labels, sizes=[2, 3], count=6, seed=1)
    assert chosen != [dot.members for dot in other]
    assert len(compare_on_subsets(members, predict, labels, sizes=[3])) == 4


def test_another_metric_and_a_refresh_of_the_averages():
    members, predict, labels = classifiers()

    def refresh(theta):
        return {"w": 2 * theta["w"]}

    dots = compare_on_subsets(members, predict, labels, subsets=[(0, 1)], metric=nll, refresh=refresh)
    logits = predict(refresh(average(members[:2])))
    assert dots[0].average == pytest.approx(float(nll(logits, labels)), abs=1e-12)


# Errors.


def test_what_is_refused():
    members, predict, labels = classifiers()

    def refused(match, call, *args, **options):
        with pytest.raises(InputError, match=match):
            call(*args, **options)

    refused("at least 2 members, got 1", average_against_ensemble, members[:1], predict)
    for scales in ((), (0.5, 1.0), (1.0, 0.0), (1.0, 1.0), (math.inf, 1.0), (math.nan,)):
        refused("from the largest to the smallest", average_against_ensemble, members, predict, scales=scales)
    refused("must be finite", average_against_ensemble, members, lambda theta: theta["w"] * math.nan)
    refused("samples first, got shape", average_against_ensemble, members, lambda theta: 0.5)
    shapes = iter([(2, 2), (3, 2)])
    refused(
        r"shape \(2, 2\) each time, got \(3, 2\)",
        average_against_ensemble,
        members,
        lambda theta: np.ones(next(shapes)),
    )
    refused("cannot be averaged", average_against_ensemble, [members[0], {"w": torch.zeros(2)}], predict)
    refused("at least 2 members, got 1", compare_on_subsets, members[:1], predict, labels)
    for subset in ((), (0, 0), (0, 4), (-1, 0)):
        refused(
            "different members out of 0 to 3", compare_on_subsets, members, predict, labels, subsets=[subset]
        )
    for options in ({"count": 0}, {"sizes": [5]}, {"sizes": [0]}, {"sizes": []}):
        refused("sizes from 1 to 4, got", compare_on_subsets, members, predict, labels, **options)
    refused("expected logits of shape", compare_on_subsets, members, predict, labels[:5])
