import numpy as np
import pytest

from mirepoix.heads import linear_probe, split_head, with_head
from mirepoix.runs import Run
from mirepoix.types import InputError

THETA = {"featurizer.w": np.ones(2), "classifier.weight": np.zeros((3, 2)), "classifier.bias": np.zeros(3)}
OTHER = {"featurizer.w": np.full(2, 9.0), "classifier.weight": np.ones((5, 2)), "classifier.bias": np.ones(5)}


def test_split_and_join_are_inverse():
    featurizer, classifier = split_head(THETA)
    assert list(featurizer) == ["featurizer.w"]
    assert list(classifier) == ["classifier.weight", "classifier.bias"]
    assert {**featurizer, **classifier} == THETA


def test_with_head_takes_features_from_one_and_classifier_from_the_other():
    joined = with_head(THETA, OTHER)
    assert joined["featurizer.w"] is THETA["featurizer.w"]
    assert joined["classifier.weight"] is OTHER["classifier.weight"]
    assert list(joined) == list(THETA)


def test_the_name_of_the_head_can_be_another():
    theta = {"backbone": np.ones(1), "fc.weight": np.ones(1)}
    assert list(split_head(theta, prefix="fc.")[1]) == ["fc.weight"]


def test_no_head_is_an_error_that_shows_names():
    with pytest.raises(
        InputError, match=r"no weights begin with 'classifier\.'; the last names are fc\.weight"
    ):
        with_head({"fc.weight": np.ones(1)}, OTHER)


def test_linear_probe_trains_the_classifier_in_every_step():
    seen = linear_probe(lambda theta, task, run: (theta, task, run), "theta", "task", Run(steps=12))
    assert seen == ("theta", "task", Run(steps=12, classifier_steps=12))
