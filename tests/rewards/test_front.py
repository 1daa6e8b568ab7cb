import json
import math
import subprocess
import sys

import numpy as np
import pytest

from mirepoix.rewards import RewardFront, init_worst, minmax, nondominated_probability, none, rank
from mirepoix.types import InputError
from tests.rewards.fronts import NEWS, table_front

VALUES = np.random.default_rng(0).normal(size=(3, 2, 6))
SHARES = ({"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1})


def front(**options):
    given = {
        "experts": ("a", "b"),
        "rewards": ("first", "second"),
        "coefficients": SHARES,
        "values": VALUES,
        "trained_on": {"a": "first", "b": "second"},
        "provenance": {"evaluation": "six prompts"},
    }
    return RewardFront(**{**given, **options})


def test_means_are_those_of_the_values():
    made = front()
    assert np.array_equal(made.means, VALUES.mean(axis=-1))
    assert front(means=VALUES.mean(axis=-1)).items == made.items == 6
    assert len(made) == 3
    assert front(values=None, means=VALUES.mean(axis=-1)).items is None


def test_coefficients_are_found_by_name_whatever_their_order():
    turned = front(coefficients=tuple({"b": shares["b"], "a": shares["a"]} for shares in SHARES))
    assert np.array_equal(turned.shares, front().shares)
    assert front().shares.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert front().ends() == [0, 2]
    assert front().vertex("b") == 2
    assert front(coefficients=SHARES[1:] + SHARES[:1]).ends() == [2, 1]


def test_arrays_are_copies_that_cannot_be_written():
    values = VALUES.copy()
    made = front(values=values)
    values[:] = 0
    assert np.array_equal(made.values, VALUES)
    for array in (made.values, made.means):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_table_of_the_experts_alone():
    means = VALUES.mean(axis=-1)
    assert front().table() == {
        "a": {"first": means[0, 0], "second": means[0, 1]},
        "b": {"first": means[2, 0], "second": means[2, 1]},
    }


def test_an_expert_named_as_a_reward_was_trained_on_it_unless_said_otherwise():
    assert table_front(NEWS, "R1", "R2").trained_on == {"R1": "R1", "R2": "R2"}
    assert front(trained_on={}).trained_on == {}
    assert front(trained_on={}).trained_rewards() == ("first", "second")
    assert front(trained_on={"b": "second"}).trained_rewards() == ("second",)


# Choosing


def test_the_best_point_maximises_the_preferred_sum():
    news = table_front(NEWS, "R1", "R2")
    for weight in (0.0, 0.3, 0.5, 1.0):
        sums = [weight * first + (1 - weight) * second for first, second in NEWS]
        found = news.best({"R1": weight, "R2": 1 - weight})
        assert found.index == int(np.argmax(sums))
        assert found.score == pytest.approx(max(sums))
        assert found.means == {"R1": NEWS[found.index][0], "R2": NEWS[found.index][1]}
        assert found.coefficients["R1"] == found.index / 10


def test_a_preference_may_name_some_rewards_or_be_any_function():
    news = table_front(NEWS, "R1", "R2")
    assert news.best({"R2": 1}).index == 2
    worst_of_both = news.best(lambda means: min(means["R1"] - 1, means["R2"] + 1))
    assert worst_of_both.index == int(np.argmax([min(a - 1, b + 1) for a, b in NEWS]))


def test_the_first_of_equal_points_is_the_best():
    flat = front(values=None, means=np.ones((3, 2)))
    assert flat.best({"first": 1}).index == 0


# Rows


def test_rows_tell_means_errors_and_who_is_dominated():
    rows = front().rows(resamples=200, seed=3)
    likely = nondominated_probability(VALUES, resamples=200, seed=3)
    for i, row in enumerate(rows):
        assert row["coefficients"] == {name: float(share) for name, share in SHARES[i].items()}
        assert row["means"]["second"] == VALUES[i, 1].mean()
        assert row["standard_errors"]["first"] == pytest.approx(np.std(VALUES[i, 0], ddof=1) / math.sqrt(6))
        assert row["nondominated_probability"] == likely[i]
        assert row["nondominated"] == front().nondominated()[i]
    assert json.dumps(rows)
    assert "standard_errors" not in front(values=None, means=VALUES.mean(axis=-1)).rows()[0]
    assert front(values=VALUES[..., :1]).rows()[0]["standard_errors"] is None


def test_dominance_may_look_at_some_rewards():
    news = table_front(NEWS, "R1", "R2")
    assert news.nondominated(rewards=["R1"]).tolist() == [False] * 10 + [True]
    assert news.nondominated(eps=10.0).sum() == 1


def test_a_front_prints_as_a_table():
    lines = str(table_front(NEWS[:2], "R1", "R2", label="soups of news")).splitlines()
    assert lines[0] == "soups of news, 2 points"
    assert lines[1].split() == ["lambda[R1]", "lambda[R2]", "R1", "R2"]
    assert lines[2].split() == ["0", "1", "0.984", "-0.788"]


# Scales


def test_normalising_maps_means_and_values_and_keeps_the_constants():
    made = front()
    fitted = minmax(made.by_reward())
    scaled = made.normalised(fitted)
    assert scaled.means.min(axis=0) == pytest.approx([0, 0], abs=1e-12)
    assert scaled.means.max(axis=0) == pytest.approx([1, 1])
    assert scaled.values.mean(axis=-1) == pytest.approx(scaled.means)
    assert scaled.normaliser is fitted
    only = front(values=None, means=VALUES.mean(axis=-1)).normalised(fitted)
    assert only.means == pytest.approx(scaled.means)
    news = table_front(NEWS, "R1", "R2")
    initial = {"R1": 1.089, "R2": -1.4}
    assert news.normalised(init_worst(news.by_reward(), initial)).means[0, 0] == 0


def test_ranks_are_taken_item_by_item():
    made = front()
    ranked = made.normalised(rank(made.values_by_reward()))
    expected = VALUES.argsort(axis=0).argsort(axis=0) + 1
    assert np.array_equal(ranked.values, expected)
    assert np.array_equal(ranked.means, expected.mean(axis=-1))


# Text and files


@pytest.mark.parametrize("with_values", [True, False])
def test_a_front_comes_back_from_text_and_file_with_the_same_bits(with_values, tmp_path):
    made = front() if with_values else front(values=None, means=VALUES.mean(axis=-1))
    made = made.normalised(none(made.rewards))
    made.save(tmp_path / "front.json")
    for again in (RewardFront.from_json(made.to_json()), RewardFront.load(tmp_path / "front.json")):
        assert again.to_dict() == made.to_dict()
        assert np.array_equal(again.means, made.means)
        assert again.to_json() == made.to_json()
    assert (tmp_path / "front.json").read_text() == made.to_json() + "\n"


SAVE_FOREVER = """
import sys
from mirepoix.rewards import RewardFront
front = RewardFront(("a",), ("a",), ({"a": 1},) * 2000, [[i / 7] for i in range(2000)])
while True:
    front.save(sys.argv[1])
    print("saved", flush=True)
"""


def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "front.json"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "saved\n"
    finally:
        process.kill()
        process.communicate()
    assert len(RewardFront.load(path)) == 2000


def broken(change):
    values = front().to_dict()
    change(values)
    return values


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: front(experts=()), "experts: expected at least one name"),
        (lambda: front(rewards=("x", "x")), "rewards: expected each name once"),
        (lambda: front(coefficients=SHARES[:2]), "expected 2 points .* of 2 rewards, got shape \\(3, 2\\)"),
        (lambda: front(rewards=("x", "y", "z"), trained_on={}), "of 3 rewards, got shape \\(3, 2\\)"),
        (lambda: front(coefficients=({"a": 1}, *SHARES[1:])), "coefficients of point 0: .* got 'a'"),
        (lambda: front(values=None), "means: expected the mean rewards of each point"),
        (lambda: front(means=np.zeros((3, 2))), "means: expected those of the values"),
        (lambda: front(values=np.full((3, 2, 4), np.nan)), "got nan at point 0, reward 0, item 0"),
        (lambda: front(values=None, means=[(1, 2), (3, np.nan), (5, 6)]), "got nan in row 1, reward 1"),
        (lambda: front(trained_on={"c": "first"}), "trained_on: 'c' is none of the experts 'a', 'b'"),
        (lambda: front(coefficients=(SHARES[0], SHARES[1], SHARES[1])).ends(), "but 'b' is missing"),
        (lambda: front().best({"third": 1}), "the front has no 'third'; it has 'first', 'second'"),
        (lambda: front().best({"first": math.nan}), "preference: expected a finite number for 'first'"),
        (lambda: front().best({}), "expected at least one name"),
        (lambda: front().best(lambda means: math.nan), "the score of point 0 is NaN"),
        (lambda: front().normalised(none(["first"])), "'second' was not among the rewards"),
        (
            lambda: front().normalised(none(["first", "second"])).normalised(none(["first", "second"])),
            "normalised already",
        ),
        (
            lambda: front(values=None, means=VALUES.mean(axis=-1)).normalised(
                rank({"first": [[1.0]], "second": [[1.0]]})
            ),
            "ranks need values per item",
        ),
        (
            lambda: front(values=None, means=VALUES.mean(axis=-1)).values_by_reward(),
            "values per item, got means only",
        ),
        (lambda: RewardFront.from_json("{"), "expected JSON"),
        (lambda: RewardFront.from_json("[]"), "it has no 'coefficients'"),
        (lambda: RewardFront.from_dict(broken(lambda v: v.pop("experts"))), "it has no 'experts'"),
        (lambda: RewardFront.from_dict(broken(lambda v: v.update(format=2))), "a front of format 1, got 2"),
        (lambda: front(provenance={"x": object()}).to_json(), "plain values, got one JSON cannot hold"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_file_that_is_no_front_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        RewardFront.load(tmp_path / "front.json")
    (tmp_path / "front.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"front\.json: expected a front"):
        RewardFront.load(tmp_path / "front.json")
    (tmp_path / "front.json").write_text(json.dumps(broken(lambda v: v["experts"].append("c"))))
    with pytest.raises(InputError, match=r"front\.json: coefficients of point 0"):
        RewardFront.load(tmp_path / "front.json")
