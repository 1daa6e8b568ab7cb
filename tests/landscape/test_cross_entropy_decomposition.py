"""The cross-entropy of ensembles in terms: enumeration, divergences written out, and what must not change."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.ensembles import average_logits, average_probabilities, vote
from mirepoix.landscape import _per_sample
from mirepoix.landscape._cross_entropy_decomposition import (
    ambiguity,
    cross_entropy_decomposition,
    diversity_effect,
)
from mirepoix.metrics import nll
from mirepoix.types import InputError

EXACT = {"rel": 0, "abs": 1e-12}
TERMS = ("ensemble_error", "bias", "variance", "diversity", "member_error")


def drawn(*shape, seed=0):
    """Logits, and labels of the samples."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(2 * random.normal(size=shape)), torch.from_numpy(
        random.integers(shape[-1], size=shape[-2])
    )


def soft(samples, classes, seed=0):
    values = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), size=samples)
    return torch.from_numpy(values)


def values(found):
    return [getattr(found, name).value for name in TERMS]


def divergence(q, p):
    """KL of two distributions, by the definition."""
    return sum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)


def geometric(ps):
    product = np.prod(np.stack(ps) ** (1 / len(ps)), axis=0)
    return product / product.sum()


def by_loops(logits, targets, centroid="member"):
    p = torch.softmax(logits, -1).numpy()
    replicates, members, samples, _ = p.shape
    error = bias = variance = diversity = own = 0.0
    share = 1 / (samples * replicates * members)
    for n in range(samples):
        y = np.asarray(targets[n])

        def cross_entropy(q, y=y):
            return -sum(a * math.log(b) for a, b in zip(y.tolist(), q.tolist(), strict=True) if a > 0)

        for g, i in itertools.product(range(replicates), range(members)):
            ensemble = geometric([p[g, j, n] for j in range(members)])
            if centroid == "member":
                centre = geometric([p[h, i, n] for h in range(replicates)])
            else:
                centre = geometric([p[h, j, n] for h in range(replicates) for j in range(members)])
            error += cross_entropy(ensemble) * share
            bias += cross_entropy(centre) * share
            variance += divergence(centre, p[g, i, n]) * share
            diversity += divergence(ensemble, p[g, i, n]) * share
            own += cross_entropy(p[g, i, n]) * share
    return [error, bias, variance, diversity, own]


sizes = {
    "replicates": st.integers(2, 3),
    "members": st.integers(1, 3),
    "samples": st.integers(1, 4),
    "classes": st.integers(2, 4),
    "seed": st.integers(0, 2**31),
    "centroid": st.sampled_from(["member", "pooled"]),
}


@given(**sizes)
def test_loops_agree_and_the_identity_is_exact(replicates, members, samples, classes, seed, centroid):
    logits, labels = drawn(replicates, members, samples, classes, seed=seed)
    for targets in (labels, soft(samples, classes, seed)):
        found = cross_entropy_decomposition(logits, targets, centroid=centroid, resamples=0)
        full = torch.eye(classes, dtype=torch.float64)[labels] if targets is labels else targets
        assert values(found) == pytest.approx(by_loops(logits, full, centroid), rel=1e-12, abs=1e-12)
        error, bias, variance, diversity, own = values(found)
        assert error == pytest.approx(bias + variance - diversity, **EXACT)
        assert own == pytest.approx(bias + variance, **EXACT)
        assert min(variance, diversity) > -1e-14


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("centroid", ["member", "pooled"])
def test_of_all_tuples_of_a_few_models_both_sides_are_equal(members, centroid):
    """Three models, each equally likely: the centroid is that of the three, and the error the mean of all tuples."""
    logits, labels = drawn(3, 5, 4)
    tuples = torch.tensor(list(itertools.product(range(3), repeat=members)))
    found = cross_entropy_decomposition(logits[tuples], labels, centroid=centroid, resamples=0)
    centre = logits.log_softmax(-1).mean(0)  # the logits of the normalised geometric mean
    assert found.bias.value == pytest.approx(float(nll(centre, labels)), **EXACT)
    p, q = logits.softmax(-1), centre.softmax(-1)
    spread = np.mean([[divergence(q[n], p[m, n]) for n in range(5)] for m in range(3)])
    assert found.variance.value == pytest.approx(spread, **EXACT)
    errors = [float(nll(average_logits(logits[each]), labels)) for each in tuples]
    assert found.ensemble_error.value == pytest.approx(np.mean(errors), **EXACT)
    ensembles = [logits[each].log_softmax(-1).mean(0).softmax(-1) for each in tuples]
    diversity = np.mean(
        [
            divergence(q[n], p[m, n])
            for each, q in zip(tuples, ensembles, strict=True)
            for m in each
            for n in range(5)
        ]
    )
    assert found.diversity.value == pytest.approx(diversity, **EXACT)
    assert np.mean(errors) == pytest.approx(found.bias.value + spread - diversity, **EXACT)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31))
def test_ambiguity_is_what_averaging_gains(members, samples, classes, seed):
    logits, labels = drawn(members, samples, classes, seed=seed)
    found = ambiguity(logits, labels, resamples=0)
    own = np.mean([float(nll(each, labels)) for each in logits])
    assert found.ensemble_error.value == pytest.approx(float(nll(average_logits(logits), labels)), **EXACT)
    assert found.member_error.value == pytest.approx(own, **EXACT)
    p, q = logits.softmax(-1), average_logits(logits).softmax(-1)
    gain = np.mean([[divergence(q[n], p[i, n]) for n in range(samples)] for i in range(members)])
    assert found.ambiguity.value == pytest.approx(gain, **EXACT)
    assert own - gain == pytest.approx(found.ensemble_error.value, **EXACT)
    averaged = float(nll(average_probabilities(logits), labels))
    assert found.probability_gain.value == pytest.approx(own - averaged, **EXACT)
    assert found.probability_gain.value >= -1e-14


def test_one_replicate_at_a_time_ambiguity_is_the_diversity():
    logits, labels = drawn(3, 4, 6, 5)
    found = cross_entropy_decomposition(logits, labels, resamples=0)
    each = [ambiguity(one, labels, resamples=0).ambiguity.value for one in logits]
    assert found.diversity.value == pytest.approx(np.mean(each), **EXACT)


def test_copies_have_no_diversity_and_equal_replicates_no_variance():
    logits, labels = drawn(3, 1, 6, 4)
    copies = cross_entropy_decomposition(logits.expand(3, 4, 6, 4), labels, resamples=0)
    assert copies.diversity.value == pytest.approx(0, **EXACT)
    assert copies.variance.value > 0.1
    logits, labels = drawn(1, 3, 6, 4)
    equal = cross_entropy_decomposition(logits.expand(2, 3, 6, 4), labels, resamples=0)
    assert equal.variance.value == pytest.approx(0, **EXACT)
    assert equal.diversity.value > 0.1
    pooled = cross_entropy_decomposition(logits.expand(2, 3, 6, 4), labels, centroid="pooled", resamples=0)
    assert pooled.variance.value == pytest.approx(equal.diversity.value, **EXACT)
    assert pooled.ensemble_error.value == equal.ensemble_error.value


def test_the_entropy_of_soft_labels_is_in_the_bias():
    y = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    logits = y.clamp_min(1e-300).log().expand(2, 2, 2, 2)
    found = cross_entropy_decomposition(logits, y, resamples=0)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 2
    assert found.label_entropy == pytest.approx(entropy)
    assert found.bias.value == pytest.approx(entropy)
    assert cross_entropy_decomposition(logits, torch.tensor([0, 0]), resamples=0).label_entropy == 0


@given(**sizes)
def test_order_and_constants_do_not_matter(replicates, members, samples, classes, seed, centroid):
    logits, labels = drawn(replicates, members, samples, classes, seed=seed)
    random = np.random.default_rng(seed)
    order = random.permutation(samples)
    shuffled = logits[random.permutation(replicates)][:, random.permutation(members)][:, :, order] + 50
    one = cross_entropy_decomposition(logits, labels, centroid=centroid, resamples=0)
    other = cross_entropy_decomposition(shuffled, labels[order], centroid=centroid, resamples=0)
    assert values(one) == pytest.approx(values(other), rel=1e-11, abs=1e-11)


def test_domains_add_up_and_blocks_change_nothing(monkeypatch):
    logits, labels = drawn(3, 2, 20, 4)
    domains = torch.from_numpy(np.random.default_rng(1).choice([1, 3], size=20))
    for draw in ("samples", "replicates"):
        options = {"domains": domains, "draw": draw, "resamples": 10}
        monkeypatch.undo()
        found = cross_entropy_decomposition(logits, labels, **options)
        weighted = sum(each.samples / 20 * np.array(values(each)) for each in found.domains.values())
        assert values(found) == pytest.approx(weighted, **EXACT)
        monkeypatch.setattr(_per_sample, "BLOCK", 3 * 2 * 4 * 3)
        small = cross_entropy_decomposition(logits, labels, **options)
        assert values(small) == pytest.approx(values(found), **EXACT)
        assert small.variance.low == pytest.approx(found.variance.low, **EXACT)
    gains = ambiguity(logits[0], labels, domains=domains, resamples=0)
    parts = [(each.samples / 20, each.ambiguity.value) for each in gains.domains.values()]
    assert gains.ambiguity.value == pytest.approx(sum(a * b for a, b in parts), **EXACT)


def test_tiny_probabilities_lose_nothing():
    """One class at e^-2000 in one member: the logarithm of its softmax would be minus infinity."""
    logits = torch.tensor([[[0.0, -2000.0]], [[-2000.0, 0.0]]])
    found = ambiguity(logits, torch.tensor([0]), resamples=0)
    assert found.member_error.value == 1000
    assert found.ensemble_error.value == pytest.approx(math.log(2))
    assert found.ambiguity.value == pytest.approx(1000 - math.log(2))
    assert found.probability_gain.value == pytest.approx(1000 - math.log(2))


def test_excluded_classes_and_infinite_errors():
    inf = math.inf
    logits = torch.tensor([[[0.0, 0.0, -inf]], [[0.0, -inf, -inf]]], dtype=torch.float64)
    found = ambiguity(logits, torch.tensor([0]), resamples=10)
    assert found.member_error.value == pytest.approx(math.log(2) / 2)
    assert found.ambiguity.value == pytest.approx(math.log(2) / 2)
    assert found.ensemble_error.value == pytest.approx(0, **EXACT)
    wrong = ambiguity(logits.expand(2, 1, 3), torch.tensor([2]), resamples=10)
    assert wrong.ensemble_error.value == wrong.member_error.value == inf
    assert math.isnan(wrong.probability_gain.value)
    assert wrong.to_dict()["member_error"] == {"value": None, "low": None, "high": None, "level": 0.95}
    many = ambiguity(logits.expand(2, 4, 3), torch.tensor([2, 0, 0, 0]), resamples=10)
    assert many.member_error.value == inf
    assert math.isnan(many.member_error.low)
    expected = cross_entropy_decomposition(
        logits.expand(2, 2, 1, 3), torch.tensor([2]), draw="replicates", resamples=10
    )
    assert expected.ensemble_error.value == expected.bias.value == inf
    assert expected.diversity.value == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("centroid", ["member", "pooled"])
def test_drawing_replicates_again_is_measuring_the_drawn(centroid, monkeypatch):
    logits, labels = drawn(4, 2, 5, 3)
    draws = [np.array([0, 1, 2, 3]), np.array([0, 0, 1, 3]), np.array([2, 2, 2, 2])]
    seen = []

    def spy(statistic, units, values, *, resamples, seed):
        seen.extend(statistic(draw) for draw in draws)
        return [_per_sample.Interval(float(value), math.nan, math.nan) for value in values]

    monkeypatch.setattr("mirepoix.landscape._cross_entropy_decomposition.unit_intervals", spy)
    cross_entropy_decomposition(logits, labels, centroid=centroid, draw="replicates")
    for draw, got in zip(draws, seen, strict=True):
        again = cross_entropy_decomposition(logits[draw], labels, centroid=centroid, resamples=0)
        assert got == pytest.approx(values(again), **EXACT)


def test_over_all_draws_of_replicates_each_term_is_its_value_on_average(monkeypatch):
    logits, labels = drawn(3, 2, 5, 3)

    def spy(statistic, units, values, *, resamples, seed):
        statistic(np.arange(units))
        draws = itertools.product(range(units), repeat=units)
        means = np.mean([statistic(np.array(draw)) for draw in draws], axis=0)
        return [
            _per_sample.Interval(float(value), float(mean), float(mean))
            for value, mean in zip(values, means, strict=True)
        ]

    monkeypatch.setattr("mirepoix.landscape._cross_entropy_decomposition.unit_intervals", spy)
    found = cross_entropy_decomposition(logits, labels, draw="replicates")
    for name in TERMS:
        assert getattr(found, name).low == pytest.approx(getattr(found, name).value, **EXACT)
        assert getattr(found, name).high == pytest.approx(getattr(found, name).value, **EXACT)


def test_intervals_hold_their_value_and_depend_on_the_seed_alone():
    logits, labels = drawn(4, 3, 40, 3)
    for draw in ("samples", "replicates"):
        found = cross_entropy_decomposition(logits, labels, draw=draw, resamples=200)
        for name in TERMS:
            interval = getattr(found, name)
            assert interval.low <= interval.value <= interval.high
        assert found == cross_entropy_decomposition(logits, labels, draw=draw, resamples=200)
        assert (
            found.bias != cross_entropy_decomposition(logits, labels, draw=draw, resamples=200, seed=1).bias
        )
    none = cross_entropy_decomposition(logits, labels, draw="replicates", resamples=0)
    assert math.isnan(none.variance.low)
    assert none.draw == "replicates"


def test_intervals_cover_nineteen_times_in_twenty():
    logits, labels = drawn(3, 16000, 4)
    truth = ambiguity(logits, labels, resamples=0).ambiguity.value
    hits = 0
    for start in range(0, 16000, 80):
        part = slice(start, start + 80)
        found = ambiguity(logits[:, part], labels[part], resamples=200).ambiguity
        hits += found.low <= truth <= found.high
    assert 0.89 < hits / 200 < 0.99


def test_half_precision_is_widened_and_arguments_stay():
    logits, labels = drawn(2, 2, 6, 3)
    logits = logits.half()
    kept = logits.clone()
    found = cross_entropy_decomposition(logits, labels, resamples=0)
    assert torch.equal(logits, kept)
    assert values(found) == values(cross_entropy_decomposition(logits.double(), labels, resamples=0))
    soft = torch.full((6, 3), 0.25)
    soft[:, 1] = 0.5  # without rounding
    of_half, of_single = (ambiguity(logits[0], y, resamples=0) for y in (soft.bfloat16(), soft))
    assert of_half == of_single
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["diversity"]["value"] == found.diversity.value
    assert content["members"] == content["replicates"] == 2


# Votes.


def test_the_effect_of_a_vote_by_hand():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    labels = torch.tensor([0, 0, 0, 0])
    good = torch.tensor(
        [[right, right, wrong, right], [right, wrong, right, right], [wrong, right, right, wrong]]
    )
    found = diversity_effect(good, labels, resamples=0)
    assert found.member_error.value == pytest.approx(4 / 12)
    assert found.ensemble_error.value == 0
    assert found.effect.value == pytest.approx(1 / 3)
    bad = torch.tensor([[wrong, wrong], [wrong, wrong], [right, right]])
    worse = diversity_effect(bad, labels[:2], resamples=0)
    assert worse.effect.value == pytest.approx(2 / 3 - 1)
    assert json.loads(json.dumps(worse.to_dict()))["ensemble_error"]["value"] == 1


@given(st.integers(1, 5), st.integers(1, 6), st.integers(2, 4), st.integers(0, 2**31))
def test_the_effect_is_that_of_the_vote(members, samples, classes, seed):
    logits, labels = drawn(members, samples, classes, seed=seed)
    domains = torch.arange(samples) % 2
    found = diversity_effect(logits, labels, domains=domains, resamples=0)
    own = float((logits.argmax(-1) != labels).double().mean())
    assert found.effect.value == pytest.approx(own - float((vote(logits) != labels).double().mean()), **EXACT)
    parts = [(each.samples / samples, each.effect.value) for each in found.domains.values()]
    assert found.effect.value == pytest.approx(sum(a * b for a, b in parts), **EXACT)
    if members == 1:
        assert found.effect.value == 0


# Errors.


def test_what_is_refused():
    logits, labels = drawn(2, 2, 3, 4)

    def refused(match, predictions=logits, labels=labels, measure=cross_entropy_decomposition, **options):
        with pytest.raises(InputError, match=match):
            measure(predictions, labels, **options)

    refused(r"at least 2 replicates, got 1: one ensemble has no variance", logits[:1])
    refused(r"\(replicates, members, samples, classes\), got \(2, 3, 4\)", logits[0])
    refused(r"\(members, samples, classes\), got \(2, 2, 3, 4\)", measure=ambiguity)
    refused("at least one of members", logits[0, :0], measure=ambiguity)
    refused("at least one of samples", logits[0, :, :0], labels[:0], measure=diversity_effect)
    refused("centroid must be 'member' or 'pooled', got 'mean'", centroid="mean")
    refused("draw must be 'samples' or 'replicates', got 'runs'", draw="runs")
    refused("labels must lie in 0 to 3", labels=torch.tensor([0, -1, 0]))
    refused("soft labels must be at least 0 and sum to one", labels=torch.full((3, 4), 0.3))
    refused("labels that are classes", logits[0], torch.full((3, 4), 0.25), measure=diversity_effect)
    refused(r"domains of shape \(3,\)", domains=torch.zeros(3))
    bad = logits.clone()
    bad[1, 0, 2, 3] = math.nan
    refused("largest logit must be a number, that of replicate 1, member 0, sample 2 is not", bad)
    refused("that of member 0, sample 2 is not", bad[1], measure=ambiguity)
    apart = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
    refused("no class of sample 0 has a logit above", apart, torch.tensor([0]), measure=ambiguity)
    refused("no class of sample 0 has a logit above", apart[:, None], torch.tensor([0]))
