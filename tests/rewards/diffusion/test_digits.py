import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mirepoix.rewards.diffusion import DigitDiffusion
from mirepoix.rewards.diffusion._digits import real_digits
from mirepoix.seeds import stream
from mirepoix.types import InputError

TASK = DigitDiffusion()


def drawn(images=5):
    random = stream("some images")
    return random.uniform(-1, 1, (images, 8, 8)), random.integers(10, size=images)


def test_the_data_are_the_digits_in_minus_one_to_one():
    images, labels = real_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert (labels == load_digits().target).all()
    np.testing.assert_allclose((images[:, 0] + 1) * 8, load_digits().images)


def test_boldness_and_symmetry_by_loops():
    images, labels = drawn()
    found = TASK.score(images, labels)
    for i, image in enumerate(images):
        ink = (image + 1) / 2
        bold = sum(ink[y, x] for y, x in itertools.product(range(8), repeat=2)) / 64
        uneven = sum(abs(ink[y, x] - ink[y, 7 - x]) for y, x in itertools.product(range(8), repeat=2)) / 64
        assert found["boldness"][i] == pytest.approx(bold, rel=1e-12)
        assert found["symmetry"][i] == pytest.approx(-uneven, rel=1e-12)


def test_legibility_is_the_log_odds_of_a_classifier_of_real_digits():
    digits = load_digits()
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(digits.data / 8 - 1, digits.target)
    assert classifier.score(digits.data / 8 - 1, digits.target) > 0.97
    images, labels = drawn()
    probabilities = classifier.predict_proba(images.reshape(5, 64))
    expected = [math.log(p[c] / (1 - p[c])) for p, c in zip(probabilities, labels, strict=True)]
    np.testing.assert_allclose(TASK.score(images, labels)["legibility"], expected, rtol=1e-6)


def test_rewards_prefer_what_they_are_called_after():
    images, labels = real_digits()
    right, wrong = TASK.score(images, labels), TASK.score(images, (labels + 1) % 10)
    assert right["legibility"].mean() > 2 > -2 > wrong["legibility"].mean()
    assert (TASK.score(np.sqrt((images + 1) / 2) * 2 - 1, labels)["boldness"] >= right["boldness"]).all()
    paper = TASK.score(-np.ones((1, 8, 8)), [3])
    assert (paper["boldness"], paper["symmetry"]) == (0, 0)
    assert TASK.score(np.ones((1, 8, 8)), [3])["boldness"] == 1


def test_an_image_has_its_reward_whatever_is_scored_beside_it():
    images, labels = drawn(64)
    together = TASK.score(images, labels)
    for i in (0, 63):
        alone = TASK.score(images[i : i + 1, None], labels[i : i + 1])
        assert all(alone[name][0] == together[name][i] for name in together)
    assert all(values.dtype == np.float64 for values in together.values())


def test_all_rewards_are_measured_those_to_train_on_first():
    assert TASK.rewards == ("legibility", "boldness")
    task = DigitDiffusion(rewards=["symmetry"])
    assert list(task.score(*drawn())) == ["symmetry", "legibility", "boldness"]


def test_the_digest_names_the_content():
    others = [{"rewards": ("boldness", "legibility")}, {"rewards": ("boldness",)}, {"channels": (8, 64)}]
    digests = {dataclasses.replace(TASK, **change).digest for change in others}
    assert len({TASK.digest, *digests}) == 4
    assert DigitDiffusion(channels=[32, 64]).digest == TASK.digest


def test_shares_are_in_the_order_of_the_rewards():
    assert TASK.shares({"boldness": 2, "legibility": -0.5}) == (-0.5, 2.0)
    assert TASK.shares({"boldness": 1}) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"fast": 1.0}, "there is no reward 'fast' to train on; expected some of legibility, boldness"),
        ({"symmetry": 1.0}, "there is no reward 'symmetry' to train on"),
        ({"boldness": float("nan")}, r"reward\['boldness'\]: expected a finite coefficient"),
        ({"boldness": 0.0}, "expected a coefficient that is not 0"),
        ({}, "expected a coefficient that is not 0"),
    ],
)
def test_wrong_shares_are_refused(reward, message):
    with pytest.raises(InputError, match=message):
        TASK.shares(reward)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rewards": ()}, "rewards: expected different names"),
        ({"rewards": "legibility"}, "rewards: expected different names"),
        ({"rewards": ("boldness", "boldness")}, "rewards: expected different names"),
        ({"rewards": ("beauty",)}, "rewards: there is no 'beauty'; expected some of legibility"),
        ({"channels": (32,)}, "channels: expected two widths, multiples of 8"),
        ({"channels": (12, 32)}, "channels: expected two widths, multiples of 8"),
        ({"channels": (0, 32)}, "channels: expected two widths, multiples of 8"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DigitDiffusion(**fields)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 7, 8)), [1, 2], r"images: expected shape \(images, 8, 8\) .* got \(2, 7, 8\)"),
        (np.zeros((2, 3, 8, 8)), [1, 2], "images: expected shape"),
        (np.zeros((8, 8)), [1], "images: expected shape"),
        (np.full((1, 8, 8), np.nan), [1], r"images: expected finite pixels in \[-1, 1\]"),
        (np.full((1, 8, 8), 200, dtype=np.uint8), [1], "images: expected finite pixels"),
        (np.zeros((2, 8, 8)), [1], "labels: expected a digit from 0 to 9 for each of 2 images"),
        (np.zeros((1, 8, 8)), [10], "labels: expected a digit from 0 to 9 .* with 10 to 10"),
        (np.zeros((1, 8, 8)), [0.5], "labels: expected a digit from 0 to 9"),
    ],
)
def test_wrong_images_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        TASK.score(images, labels)
