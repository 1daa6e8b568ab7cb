"""Bias, variance and covariance: full enumeration of a tiny set of models, loops, and what must not change."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.landscape import _per_sample
from mirepoix.landscape._bias_variance import BVCL, bias_variance, bias_variance_covariance, bvcl
from mirepoix.types import InputError

EXACT = {"rel": 0, "abs": 1e-12}


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def drawn(*shape, seed=0):
    """Probabilities, and labels of the samples."""
    random = np.random.default_rng(seed)
    f = softmax(2 * random.normal(size=shape))
    return torch.from_numpy(f), torch.from_numpy(random.integers(shape[-1], size=shape[-2]))


def values(found):
    names = ("bias_squared", "variance", "covariance", "member_error", "ensemble_error")
    return [getattr(found, name).value for name in names if hasattr(found, name)]


def by_loops(f, labels):
    """The definitions, one number at a time."""
    replicates, members, samples, classes = f.shape
    bias = variance = covariance = member = ensemble = 0.0
    for n in range(samples):
        for k in range(classes):
            y = float(labels[n] == k)
            mean = sum(f[g, i, n, k] for g in range(replicates) for i in range(members)) / (
                replicates * members
            )
            bias += (y - mean) ** 2 / samples
            for g in range(replicates):
                ensemble += (y - sum(f[g, i, n, k] for i in range(members)) / members) ** 2 / (
                    samples * replicates
                )
                for i in range(members):
                    share = samples * replicates * members
                    variance += (f[g, i, n, k] - mean) ** 2 / share
                    member += (y - f[g, i, n, k]) ** 2 / share
                    for j in range(members):
                        if i != j:
                            product = (f[g, i, n, k] - mean) * (f[g, j, n, k] - mean)
                            covariance += product / (share * (members - 1))
    return [bias, variance, covariance, member, ensemble]


sizes = {
    "replicates": st.integers(2, 4),
    "members": st.integers(2, 4),
    "samples": st.integers(1, 6),
    "classes": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
}


@given(**sizes)
def test_loops_agree_and_the_identity_is_exact(replicates, members, samples, classes, seed):
    f, labels = drawn(replicates, members, samples, classes, seed=seed)
    found = bias_variance_covariance(f, labels, resamples=0)
    assert values(found) == pytest.approx(by_loops(f.numpy(), labels), **EXACT)
    assert found.error(members) == pytest.approx(found.ensemble_error.value, **EXACT)
    assert found.error(1) == pytest.approx(found.member_error.value, **EXACT)
    corrected = bias_variance_covariance(f, labels, resamples=0, correct=True)
    assert corrected.error(members) == pytest.approx(found.ensemble_error.value, **EXACT)
    assert corrected.error(1) == pytest.approx(found.member_error.value, **EXACT)


def population(models=3, samples=4, classes=3, seed=0):
    """A few models, each equally likely, and the terms in expectation over them."""
    f, labels = drawn(models, samples, classes, seed=seed)
    y, mean = np.eye(classes)[labels], f.numpy().mean(0)
    bias = ((y - mean) ** 2).sum(-1).mean()
    variance = ((f.numpy() - mean) ** 2).sum(-1).mean()
    return f, labels, bias, variance


@pytest.mark.parametrize("members", [2, 3])
def test_of_all_tuples_of_a_few_models_both_sides_are_equal_and_independent_members_have_no_covariance(
    members,
):
    f, labels, bias, variance = population()
    everything = f[
        torch.tensor(list(itertools.product(range(3), repeat=members)))
    ]  # (3 ** members, members, samples, classes)
    found = bias_variance_covariance(everything, labels, resamples=0)
    y = np.eye(3)[labels]
    error = ((y - everything.numpy().mean(1)) ** 2).sum(-1).mean()
    assert found.bias_squared.value == pytest.approx(bias, **EXACT)
    assert found.variance.value == pytest.approx(variance, **EXACT)
    assert found.covariance.value == pytest.approx(0, **EXACT)
    assert found.ensemble_error.value == pytest.approx(error, **EXACT)
    assert bias + variance / members == pytest.approx(error, **EXACT)


@pytest.mark.parametrize("rule", ["independent", "copies", "one apart"])
def test_the_correction_is_unbiased_over_all_draws_of_replicates(rule):
    """Two replicates of two members, from all that there are: the mean of the estimates is the truth."""
    f, labels, bias, variance = population()
    ensembles = {
        "independent": list(itertools.product(range(3), repeat=2)),
        "copies": [(i, i) for i in range(3)],
        "one apart": [(i, (i + 1) % 3) for i in range(3)],
    }[rule]
    covariance = values(bias_variance_covariance(f[torch.tensor(ensembles)], labels, resamples=0))[2]
    estimates, plain = [], []
    for pair in itertools.product(ensembles, repeat=2):
        two = f[torch.tensor(pair)]
        estimates.append(values(bias_variance_covariance(two, labels, correct=True, resamples=0))[:3])
        plain.append(values(bias_variance_covariance(two, labels, resamples=0))[:3])
    assert np.mean(estimates, axis=0) == pytest.approx([bias, variance, covariance], **EXACT)
    assert np.mean(plain, axis=0)[0] > bias + 1e-3


def test_the_correction_of_a_pool_is_unbiased_over_all_draws_of_runs():
    f, labels, bias, variance = population()
    estimates = [
        values(bias_variance(f[torch.tensor(runs)], labels, correct=True, resamples=0))[:2]
        for runs in itertools.product(range(3), repeat=3)
    ]
    assert np.mean(estimates, axis=0) == pytest.approx([bias, variance], **EXACT)


def test_of_a_pool_the_corrected_curve_is_the_mean_over_all_subsets():
    f, labels = drawn(5, 7, 3)
    found = bias_variance(f, labels, correct=True, resamples=0)
    y = np.eye(3)[labels]
    for size, error in found.curve(range(1, 6)).items():
        subsets = list(itertools.combinations(range(5), size))
        expected = np.mean([((y - f.numpy()[list(s)].mean(0)) ** 2).sum(-1).mean() for s in subsets])
        assert error == pytest.approx(expected, **EXACT)
    plain = bias_variance(f, labels, resamples=0)
    pairs = itertools.product(range(5), repeat=2)
    expected = np.mean([((y - f.numpy()[list(s)].mean(0)) ** 2).sum(-1).mean() for s in pairs])
    assert plain.error(2) == pytest.approx(expected, **EXACT)
    assert found.ensemble_error.value == pytest.approx(found.error(5), **EXACT)


def test_the_curve_predicts_the_error_of_smaller_ensembles_of_the_same_members():
    """Pairs of the four members: the terms are those of all pairs, so the mean over pairs is predicted exactly."""
    f, labels = drawn(3, 4, 5, 3)
    found = bias_variance_covariance(f, labels, resamples=0)
    y = np.eye(3)[labels]
    for size in (1, 2, 3):
        errors = [
            ((y - f.numpy()[:, list(chosen)].mean(1)) ** 2).sum(-1).mean()
            for chosen in itertools.combinations(range(4), size)
        ]
        assert found.curve([size]) == {size: pytest.approx(np.mean(errors), **EXACT)}
    assert found.error(10**9) == pytest.approx(found.bias_squared.value + found.covariance.value, abs=1e-8)


def test_copies_have_the_covariance_of_their_variance_and_gain_nothing():
    f, labels = drawn(4, 1, 6, 3)
    found = bias_variance_covariance(f.expand(4, 3, 6, 3), labels, resamples=0)
    assert found.covariance.value == pytest.approx(found.variance.value, **EXACT)
    assert found.ensemble_error.value == pytest.approx(found.member_error.value, **EXACT)


def test_opposite_members_have_a_negative_covariance_and_no_error_but_the_bias():
    f = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)[:, None]
    both = torch.stack([f, f.flip(0)])
    found = bias_variance_covariance(both, torch.tensor([0]), resamples=0)
    assert values(found) == pytest.approx([0.18, 0.08, -0.08, 0.26, 0.18])


@given(**sizes)
def test_order_does_not_matter(replicates, members, samples, classes, seed):
    f, labels = drawn(replicates, members, samples, classes, seed=seed)
    random = np.random.default_rng(seed)
    order = random.permutation(samples)
    shuffled = f[random.permutation(replicates)][:, random.permutation(members)][:, :, order]
    one = bias_variance_covariance(f, labels, resamples=0)
    other = bias_variance_covariance(shuffled, labels[order], resamples=0)
    assert values(one) == pytest.approx(values(other), **EXACT)


@pytest.mark.parametrize("correct", [False, True])
def test_domains_add_up_to_the_whole(correct):
    f, labels = drawn(3, 2, 20, 4)
    domains = torch.from_numpy(np.random.default_rng(1).choice([2, 5, 9], size=20))
    found = bias_variance_covariance(f, labels, domains=domains, correct=correct, resamples=0)
    assert list(found.domains) == [2, 5, 9]
    assert sum(each.samples for each in found.domains.values()) == found.samples == 20
    weighted = sum(each.samples / 20 * np.array(values(each)) for each in found.domains.values())
    assert values(found) == pytest.approx(weighted, **EXACT)
    alone = bias_variance_covariance(
        f[:, :, domains == 5], labels[domains == 5], correct=correct, resamples=0
    )
    assert values(alone) == pytest.approx(values(found.domains[5]), **EXACT)
    pool = bias_variance(f[:, 0], labels, domains=domains, correct=correct, resamples=0)
    weighted = sum(each.samples / 20 * np.array(values(each)) for each in pool.domains.values())
    assert values(pool) == pytest.approx(weighted, **EXACT)


def test_blocks_of_samples_change_nothing(monkeypatch):
    f, labels = drawn(3, 2, 11, 4)
    domains = torch.arange(11) % 3
    averages, thetas = f.mean(1), [[{"w": f[g, i]} for i in range(2)] for g in range(3)]
    options = {
        "averages": averages,
        "domains": domains,
        "draw": "replicates",
        "resamples": 20,
        "correct": True,
    }
    whole = bvcl(f, labels, thetas, **options).to_dict()
    monkeypatch.setattr(_per_sample, "BLOCK", 3 * 2 * 4 * 2)
    assert json.dumps(bvcl(f, labels, thetas, **options).to_dict()) != ""

    def compare(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                compare(a[key], b[key])
        elif isinstance(a, float):
            assert a == pytest.approx(b, abs=1e-13)
        else:
            assert a == b

    compare(whole, bvcl(f, labels, thetas, **options).to_dict())


def test_logits_are_softmaxed_and_half_precision_is_widened():
    logits = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    of_logits = bias_variance_covariance(logits, labels, given="logits", resamples=0)
    of_probabilities = bias_variance_covariance(logits.double().softmax(-1), labels, resamples=0)
    assert values(of_logits) == pytest.approx(values(of_probabilities), **EXACT)
    half = bias_variance_covariance(logits.bfloat16(), labels, given="logits", resamples=0)
    assert values(half) == pytest.approx(values(of_logits), rel=0.05, abs=0.01)
    rounded = bias_variance_covariance(logits.softmax(-1).half(), labels, resamples=0)
    assert values(rounded) == pytest.approx(values(of_logits), rel=0.01, abs=1e-3)


def test_values_and_soft_targets_are_a_regression():
    f = torch.tensor([[[[1.0]], [[3.0]]], [[[2.0]], [[6.0]]]])
    found = bias_variance_covariance(f, torch.tensor([[1.0]]), given="values", resamples=0)
    # mean 3; deviations (-2, 0), (-1, 3)
    assert values(found) == pytest.approx([4, 14 / 4, -3 / 2, 30 / 4, (1 + 9) / 2])
    half = bias_variance_covariance(f, torch.tensor([[1.0]]).bfloat16(), given="values", resamples=0)
    assert values(half) == values(found)


# Intervals.


def test_intervals_of_samples_are_those_of_means():
    f, labels = drawn(3, 2, 400, 3)
    found = bias_variance_covariance(f, labels, resamples=2000)
    per_sample = [
        values(bias_variance_covariance(f[:, :, [n]], labels[[n]], resamples=0)) for n in range(len(labels))
    ]
    errors = np.std(per_sample, axis=0) / 20
    names = ("bias_squared", "variance", "covariance", "member_error", "ensemble_error")
    for name, error in zip(names, errors, strict=True):
        interval = getattr(found, name)
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_intervals_cover_nineteen_times_in_twenty():
    """The error of the ensembles on other samples from where these come from."""
    f, labels = drawn(2, 2, 20000, 3)
    truth = values(bias_variance_covariance(f, labels, resamples=0))
    names = ("bias_squared", "variance", "covariance", "member_error", "ensemble_error")
    hits = np.zeros(5)
    for start in range(0, 20000, 100):
        part = slice(start, start + 100)
        found = bias_variance_covariance(f[:, :, part], labels[part], resamples=200)
        hits += [
            getattr(found, name).low <= t <= getattr(found, name).high
            for name, t in zip(names, truth, strict=True)
        ]
    assert (hits / 200 > 0.89).all()
    assert (hits / 200 < 0.99).all()


@pytest.mark.parametrize("correct", [False, True])
def test_drawing_replicates_again_is_measuring_the_drawn(correct, monkeypatch):
    """Each draw against the measure of the very replicates that were drawn."""
    f, labels = drawn(4, 3, 5, 3)
    domains = torch.tensor([0, 0, 1, 1, 1])
    averages = f[:, 0] * 0.5 + f[:, 1] * 0.5
    thetas = [[{"w": f[g, i]} for i in range(3)] for g in range(4)]
    draws = [np.array([0, 1, 2, 3]), np.array([0, 0, 1, 3]), np.array([2, 2, 2, 2]), np.array([3, 1, 1, 0])]
    seen = []

    def spy(statistic, units, values, *, resamples, seed):
        seen.append([statistic(draw) for draw in draws])
        return [_per_sample.Interval(float(value), math.nan, math.nan) for value in values]

    monkeypatch.setattr("mirepoix.landscape._bias_variance.unit_intervals", spy)
    bvcl(f, labels, thetas, averages=averages, domains=domains, draw="replicates", correct=correct)
    # Domains come first, as they are part of the result of the whole.
    for place, found in zip((0, 1, None), seen, strict=True):
        inside = slice(None) if place is None else domains == place
        for draw, got in zip(draws, found, strict=True):
            again = bvcl(
                f[draw][:, :, inside],
                labels[inside],
                [thetas[g] for g in draw],
                averages=averages[draw][:, inside],
                correct=correct,
                resamples=0,
            )
            expected = [*values(again.terms), again.average_error.value, again.remainder.value]
            assert got == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("correct", [False, True])
def test_over_all_draws_of_replicates_each_term_is_its_value_on_average(correct, monkeypatch):
    """So that an interval lies around its value, and not beside it, also with few replicates."""
    f, labels = drawn(3, 2, 5, 3)

    def spy(statistic, units, values, *, resamples, seed):
        draws = itertools.product(range(units), repeat=units)
        means = np.mean([statistic(np.array(draw)) for draw in draws], axis=0)
        return [
            _per_sample.Interval(float(value), float(mean), float(mean))
            for value, mean in zip(values, means, strict=True)
        ]

    monkeypatch.setattr("mirepoix.landscape._bias_variance.unit_intervals", spy)
    ensembles = bias_variance_covariance(f, labels, draw="replicates", correct=correct)
    pool = bias_variance(f[:, 0], labels, draw="runs", correct=correct)
    terms = ("bias_squared", "variance", "member_error", "ensemble_error")
    for interval in (*(getattr(x, name) for x in (ensembles, pool) for name in terms), ensembles.covariance):
        assert interval.low == pytest.approx(interval.value, **EXACT)
        assert interval.high == pytest.approx(interval.value, **EXACT)


def test_drawing_runs_again_and_no_draws_at_all():
    f, labels = drawn(6, 30, 3)
    found = bias_variance(f, labels, draw="runs", resamples=300)
    assert found.draw == "runs"
    assert found.variance.low < found.variance.value <= found.variance.high
    assert found.variance != bias_variance(f, labels, draw="runs", resamples=300, seed=1).variance
    assert found == bias_variance(f, labels, draw="runs", resamples=300)
    none = bias_variance(f, labels, resamples=0)
    assert none.variance.value == pytest.approx(found.variance.value, **EXACT)
    assert math.isnan(none.variance.low)
    assert not none.variance.excludes_zero


def test_arguments_stay_as_they_are_and_the_result_is_plain():
    f, labels = drawn(2, 2, 6, 3)
    kept = f.clone()
    found = bias_variance_covariance(f, labels, domains=torch.zeros(6, dtype=torch.long), resamples=10)
    assert torch.equal(f, kept)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["members"] == content["replicates"] == 2
    assert content["covariance"]["value"] == found.covariance.value
    assert content["domains"]["0"]["bias_squared"]["low"] == found.domains[0].bias_squared.low
    one = bias_variance(f[:, 0, :1], labels[:1], resamples=10).to_dict()
    assert one["bias_squared"]["low"] is None  # one sample cannot be drawn again


# Locality as the fourth term.


def test_of_a_linear_model_the_average_is_the_ensemble_and_nothing_remains():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(30, 5)))
    thetas = [[{"w": torch.from_numpy(random.normal(size=(5, 1)))} for _ in range(3)] for _ in range(4)]
    predict = torch.stack([torch.stack([x @ theta["w"] for theta in members]) for members in thetas])
    averages = torch.stack([x @ torch.stack([theta["w"] for theta in members]).mean(0) for members in thetas])
    y = torch.from_numpy(random.normal(size=(30, 1)))
    domains = torch.arange(30) % 2
    found = bvcl(predict, y, thetas, averages=averages, given="values", domains=domains)
    assert isinstance(found, BVCL)
    assert found.remainder.value == pytest.approx(0, abs=1e-12)
    assert found.average_error.value == pytest.approx(found.terms.error(3), **EXACT)
    assert found.remainder.low == pytest.approx(0, abs=1e-12)
    assert found.remainder.high == pytest.approx(0, abs=1e-12)
    assert found.locality.squared > 1
    for domain in (0, 1):
        error, rest = found.domains[domain]
        assert error.value == pytest.approx(found.terms.domains[domain].ensemble_error.value, **EXACT)
        assert rest.value == pytest.approx(0, abs=1e-12)


def test_of_a_bent_model_the_remainder_is_what_the_average_loses():
    thetas = [[{"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}]] * 2
    predict = torch.tensor([[[[1.0]], [[1.0]]]] * 2)  # w squared
    found = bvcl(predict, torch.tensor([[1.0]]), thetas, averages=torch.zeros(2, 1, 1), given="values")
    assert found.terms.ensemble_error.value == 0
    assert found.average_error.value == found.remainder.value == 1
    assert found.locality.squared == 1
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["remainder"]["value"] == 1
    assert content["locality"]["squared"] == 1
    without = bvcl(predict, torch.tensor([[1.0]]), thetas, given="values")
    assert without.remainder is None
    assert without.average_error is None
    assert without.to_dict()["remainder"] is None
    assert without.domains == {}


# Errors.


def test_what_is_refused():
    f, labels = drawn(2, 2, 3, 4)

    def refused(match, predictions=f, labels=labels, measure=bias_variance_covariance, **options):
        with pytest.raises(InputError, match=match):
            measure(predictions, labels, **options)

    refused(r"at least 2 replicates, got 1. One ensemble says nothing of the covariance", f[:1])
    refused(r"at least 2 members, got 1. Use bias_variance\(predictions\[:, 0\]", f[:, :1])
    refused(r"shape \(replicates, members, samples, classes\), got \(2, 3, 4\)", f[0])
    refused(r"at least one of samples", f[:, :, :0], labels[:0])
    refused("at least 2 runs, got 1", f[0][:1], measure=bias_variance)
    refused(r"shape \(runs, samples, classes\), got \(2, 2, 3, 4\)", measure=bias_variance)
    refused("the smallest is -.*given='logits'", 3 * f - 1)
    refused("sums go from 1.2 to 1.2", 1.2 * f)
    refused(r"labels must lie in 0 to 3", labels=torch.tensor([0, 1, 4]))
    refused(r"expected labels of shape \(3,\)", labels=torch.tensor([0, 1]))
    refused(r"or floats of shape \(3, 4\), got float32 of shape \(3, 2\)", labels=torch.zeros(3, 2))
    refused("labels must be finite", labels=torch.full((3, 4), torch.nan))
    refused(r"domains of shape \(3,\)", domains=torch.zeros(2, dtype=torch.long))
    refused("draw must be one of 'samples', 'replicates', got 'runs'", draw="runs")
    refused("draw must be one of 'samples', 'runs'", f[0], measure=bias_variance, draw="replicates")
    refused("given must be one of", given="odds")
    bad = f.clone()
    bad[1, 0, 2, 3] = torch.nan
    refused("those of replicate 1, member 0, sample 2 are not", bad)
    refused("those of run 1, member 0, sample 2 are not", bad[:, 0], measure=bias_variance)
    with pytest.raises(InputError, match="members: expected at least 1, got 0"):
        bias_variance_covariance(f, labels, resamples=0).error(0)
    thetas = [[{"w": torch.zeros(1)}] * 2] * 2
    with pytest.raises(
        InputError, match=r"2 replicates of 2 members, as there are predictions of, got \[2\]"
    ):
        bvcl(f, labels, thetas[:1])
    with pytest.raises(InputError, match=r"averages of shape \(2, 3, 4\), got \(2, 2, 4\)"):
        bvcl(f, labels, thetas, averages=f[:, 0, :2])
    with pytest.raises(InputError, match="members 0 and 1 cannot be averaged"):
        bvcl(f, labels, [[{"w": torch.zeros(1)}, {"w": torch.zeros(2)}]] * 2)


def test_a_block_names_the_sample_of_the_whole(monkeypatch):
    f, labels = drawn(2, 2, 9, 4)
    f[0, 1, 7, 0] = math.inf
    monkeypatch.setattr(_per_sample, "BLOCK", 32)
    with pytest.raises(InputError, match="replicate 0, member 1, sample 7"):
        bias_variance_covariance(f, labels)
