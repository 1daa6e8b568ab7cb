import numpy as np
import pytest

from mirepoix.fronts import choice
from mirepoix.rewards import RewardFront, cross_validate
from mirepoix.types import InputError
from tests.fronts.quadratic import trial


def test_it_is_cross_validated_where_that_is_possible():
    front = trial().soups
    found = choice(front, {"a": 2, "b": 2})
    assert found["preference"] == {"a": 0.5, "b": 0.5}
    assert found["coefficients"] == cross_validate(front, {"a": 0.5, "b": 0.5}).coefficients
    assert "cross-validated" in found["method"]
    assert found["exported"] is None
    row = [dict(shares) for shares in front.coefficients].index(found["coefficients"])
    assert found["expected"] == dict(zip(front.rewards, front.means[row], strict=True))


def test_a_reward_that_nobody_was_trained_on_is_chosen_by_its_mean():
    front = trial().soups
    found = choice(front, {"other": 1.0})
    assert found["coefficients"] == front.coefficients[int(np.argmax(front.means[:, 2]))]
    assert "largest mean" in found["method"]
    assert "optimistic" in found["notes"][0]


def test_means_without_items_are_enough():
    front = RewardFront(
        ("a", "b"), ("a", "b"), ({"a": 1, "b": 0}, {"a": 0, "b": 1}), means=[(1.0, 0.0), (0.0, 2.0)]
    )
    assert choice(front, {"a": 0.4, "b": 0.6})["coefficients"] == {"a": 0, "b": 1}


def test_the_units_of_rewards_do_not_matter():
    front = trial().soups
    scale = np.array([100.0, 1.0, 1.0])[:, None]
    other = RewardFront(
        front.experts,
        front.rewards,
        front.coefficients,
        values=front.values * scale,
        trained_on=front.trained_on,
    )
    for preference in ({"a": 0.2, "b": 0.8}, {"a": 0.5, "b": 0.5}, {"other": 1.0, "a": 1.0}):
        assert choice(front, preference)["coefficients"] == choice(other, preference)["coefficients"]
    flat = RewardFront(
        ("a", "b"), ("a", "b"), ({"a": 1, "b": 0}, {"a": 0, "b": 1}), means=[(1.0, 0.0), (1.0, 2.0)]
    )
    found = choice(flat, {"b": 1.0})
    assert found["coefficients"] == {"a": 0, "b": 1}
    assert "as they are" in found["method"]


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ({"c": 1}, "no reward 'c'; the front has 'a', 'b', 'other'"),
        ({"a": -1, "b": 1}, "weight of 0 or more for 'a', got -1"),
        ({"a": float("nan")}, "weight of 0 or more"),
        ({"a": 0}, "above 0"),
        ({}, "above 0"),
        ({"a": True}, "got True"),
    ],
)
def test_preferences_that_are_none(preference, message):
    with pytest.raises(InputError, match=message):
        choice(trial().soups, preference)
