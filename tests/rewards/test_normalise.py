import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirepoix.rewards import Normaliser, init_worst, minmax, none, rank, zscore
from mirepoix.types import InputError
from tests.reference import reward_scales as reference

MEANS = {"score": [0.2, 0.9, 0.5, 0.4], "length": [-3.0, -1.0, -7.0, -2.0]}
INITIAL = {"score": 0.4, "length": -2.0}
OTHER = {"score": [1.5, -1.0], "length": [0.0, -4.0]}


def fitted():
    items = {name: np.random.default_rng(0).integers(0, 3, (4, 5)).astype(float) for name in MEANS}
    return {
        "init_worst": init_worst(MEANS, INITIAL),
        "minmax": minmax(MEANS, margin=0.05),
        "zscore": zscore(MEANS),
        "rank": rank(items),
        "none": none(list(MEANS)),
    }


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        (init_worst(MEANS, INITIAL), lambda x, name: reference.init_worst(x, MEANS[name], INITIAL[name])),
        (minmax(MEANS), lambda x, name: reference.minmax(x, MEANS[name])),
        (minmax(MEANS, margin=0.05), lambda x, name: reference.minmax(x, MEANS[name], 0.05)),
        (zscore(MEANS), lambda x, name: reference.zscore(x, MEANS[name])),
        (none(["score", "length"]), lambda x, name: x),
    ],
    ids=["init_worst", "minmax", "minmax_margin", "zscore", "none"],
)
def test_values_are_those_of_the_formula(normaliser, expected):
    for values in (MEANS, OTHER):
        found = normaliser.apply(values)
        for name, numbers in values.items():
            assert found[name] == pytest.approx([expected(x, name) for x in numbers], abs=1e-12)


@given(
    arrays.arrays(float, (4, 3), elements=st.integers(0, 3).map(float)),
    arrays.arrays(float, (2, 3), elements=st.integers(-1, 8).map(lambda k: k / 2)),
)
def test_ranks_are_mean_places_among_the_compared_models(models, others):
    normaliser = rank({"score": models})
    for values in (models, others):
        found = normaliser.apply_to("score", values)
        for row, ranks in zip(values, found, strict=True):
            assert ranks.tolist() == [reference.rank(x, models[:, item]) for item, x in enumerate(row)]
    assert normaliser.apply_to("score", models).sum(axis=0) == pytest.approx([4 * 5 / 2] * 3)


def test_init_worst_is_one_at_the_start_and_zero_at_the_worst():
    normaliser = init_worst(MEANS, INITIAL)
    for name, numbers in MEANS.items():
        assert normaliser.apply_to(name, [INITIAL[name], min(numbers)]) == pytest.approx([1, 0])


def test_minmax_leaves_room_at_both_ends():
    found = minmax(MEANS, margin=0.05).apply_to("score", [0.2, 0.9])
    assert found == pytest.approx([0.05 / 1.1, 1.05 / 1.1])


def test_zscores_have_mean_zero_and_variance_one_on_what_they_were_fitted_on():
    samples = {"score": np.random.default_rng(0).normal(3, 7, 500)}
    found = zscore(samples).apply(samples)["score"]
    assert (found.mean(), found.var()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))


@pytest.mark.parametrize("method", ["init_worst", "minmax", "zscore", "rank", "none"])
def test_constants_come_back_from_text_and_applying_never_fits_again(method):
    normaliser = fitted()[method]
    again = Normaliser.from_dict(json.loads(json.dumps(normaliser.to_dict())))
    assert again.method == method
    assert again.rewards == normaliser.rewards == ("score", "length")
    values = {name: np.random.default_rng(1).normal(size=(3, 5)) for name in MEANS}
    before = normaliser.to_dict()
    first = normaliser.apply(values)
    normaliser.apply({name: 100 * table for name, table in values.items()})
    assert normaliser.to_dict() == before
    for name, table in again.apply(values).items():
        assert np.array_equal(table, first[name])
        # One at a time gives the same: nothing of what is applied to enters the constants.
        assert np.array_equal(again.apply_to(name, values[name][1]), first[name][1])


def test_values_given_are_not_changed():
    table = np.array([[1.0, 2.0], [3.0, 0.0]])
    before = table.copy()
    for normaliser in (rank({"score": table}), none(["score"]), zscore({"score": table})):
        normaliser.apply_to("score", table)
    assert np.array_equal(table, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: init_worst({"a": [0.5, 0.6]}, {"a": 0.5}),
            "a model worse than the initialisation in 'a', got 0.5",
        ),
        (
            lambda: init_worst({"a": [0.5]}, {"b": 0.5}),
            "initial: expected one number for each of 'a', got 'b'",
        ),
        (lambda: minmax({"a": [0.5, 0.5]}), "all compared models have 0.5 in 'a'"),
        (lambda: minmax({"a": [0.5, 0.6]}, margin=-1), "margin: expected 0 or a positive number"),
        (lambda: minmax({"a": [0.5, math.nan]}), "reward 'a': expected finite values"),
        (lambda: minmax({}), "values by the name of the reward"),
        (lambda: minmax([0.5, 0.6]), "values by the name of the reward"),
        (lambda: zscore({"a": [2.0, 2.0, 2.0]}), "zscore: 'a' is 2 for all 3 samples"),
        (lambda: rank({"a": [1.0, 2.0]}), "rank: expected 'a' as \\(models, items\\), got shape \\(2,\\)"),
        (lambda: rank({"a": [[1.0, 2.0]]}).apply_to("a", [1.0]), "the 2 items that were ranked"),
        (lambda: none([]), "rewards: expected at least one name"),
        (lambda: none(["a"]).apply({"b": [1.0]}), "'b' was not among the rewards it was fitted on, 'a'"),
        (lambda: none(["a"]).apply({"a": ["x"]}), "reward 'a': expected numbers"),
        (lambda: Normaliser.from_dict({"method": "none"}), "expected method, offset, scale and ranked"),
        (
            lambda: Normaliser.from_dict({"method": "log", "offset": {}, "scale": {}, "ranked": {}}),
            "one of the methods",
        ),
    ],
)
def test_what_has_no_scale_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
