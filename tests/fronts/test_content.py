import json

import numpy as np
import pytest

from mirepoix.fronts import Trial, front_report
from mirepoix.report import write_report
from mirepoix.rewards import Expert, RewardFront, hypervolume, sweep
from mirepoix.types import InputError
from tests.fronts.quadratic import GOALS, START, evaluate, experts, trial


def report(*trials, **options):
    return front_report(
        trials, name="toy", title="A toy", facts=[("Task", "two goals")], protocol={"seeds": [0]}, **options
    )


def test_it_is_plain_and_the_same_again():
    first, second = report(trial()), report(trial())
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    assert first["kind"] == "front"
    assert first["trained"] == ["a", "b"]
    assert first["rewards"] == ["a", "b", "other"]


def test_all_fronts_of_a_trial_are_measured_in_one_box():
    (told,) = report(trial())["trials"]
    soups, morl = trial().soups, trial().morl
    columns = np.concatenate([soups.means[:, :2], morl.means[:, :2]])
    ideal, nadir = columns.max(axis=0), columns.min(axis=0)
    assert told["box"]["ideal"] == dict(zip("ab", ideal, strict=True))
    for found, front in zip(told["volumes"], (soups, morl), strict=True):
        expected = hypervolume((front.means[:, :2] - nadir) / (ideal - nadir), (0, 0)).value
        assert found["hypervolume"] == pytest.approx(expected)
    assert [found["role"] for found in told["volumes"]] == ["soup", "morl"]
    soup, other = (found["hypervolume"] for found in told["volumes"])
    assert told["difference"]["hypervolume"]["mean"] == pytest.approx(soup - other)


def test_what_is_dominated_is_asked_of_the_trained_rewards_alone():
    rows = {(0.5, 0.5): (1.0, 1.0, 0.0), (1.0, 0.0): (0.9, 0.5, 9.0), (0.0, 1.0): (0.5, 0.9, 9.0)}
    front = RewardFront(
        ("a", "b"),
        ("a", "b", "other"),
        tuple({"a": one, "b": two} for one, two in rows),
        means=list(rows.values()),
    )
    told = report(Trial("seed 0", front))["trials"][0]["fronts"][0]["rows"]
    assert [row["nondominated"] for row in told] == [True, False, False]


def test_the_summary_has_mean_and_standard_error_over_trials():
    one, two = trial("seed 0"), trial("seed 1", shift=0.4)
    content = report(one, two)
    (soup, morl) = content["summary"]
    values = [told["volumes"][1]["hypervolume"] for told in content["trials"]]
    assert values[0] != values[1]
    assert morl["hypervolume"]["mean"] == pytest.approx(sum(values) / 2)
    assert morl["hypervolume"]["error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert (soup["trainings"], morl["trainings"]) == (2, 3)
    assert morl["seconds"] == 30
    assert "holds in 2 of 2 trials;" in content["verdict"]


def test_one_trial_has_no_error_and_says_so():
    content = report(trial())
    assert content["summary"][0]["hypervolume"]["error"] is None
    assert any("One trial" in text for _, text in content["trust"])
    assert "no soup earns less than the average" in content["verdict"]


def test_who_is_ahead_is_said_with_the_items_in_mind():
    assert "the soups are ahead" in report(trial(shift=0.5))["verdict"]
    content = report(trial())
    interval = content["trials"][0]["difference"]["hypervolume"]
    assert interval["low"] - 1e-3 <= interval["mean"] <= interval["high"] + 1e-3  # of little noise


def test_a_start_alone_is_no_part_of_the_volumes_but_of_the_spider_map():
    (told,) = report(trial())["trials"]
    assert {polygon["label"] for polygon in told["spider"]["polygons"]} == {
        "start",
        "expert a",
        "expert b",
        "uniform soup",
        "MORL a 0.5, b 0.5",
    }
    assert all(
        0 <= value <= 1 for polygon in told["spider"]["polygons"] for value in polygon["values"].values()
    )
    assert [front["role"] for front in told["fronts"]] == ["soup", "morl", "start"]


def test_rewards_that_fail_are_told_with_what_to_do():
    def bent(theta):
        w = theta["w"]
        return {name: [float(w @ w) if name == "a" else float(w[1])] * 3 for name in GOALS}

    front = sweep(experts(), [{"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, {"a": 0, "b": 1}], bent)
    content = report(Trial("seed 0", front))
    assert not content["trials"][0]["connectivity"]["holds"]
    assert "not linearly connected" in content["verdict"]
    assert any("less than the average of their experts in a" in text for _, text in content["trust"])
    assert any("3 items are few" in text for _, text in content["trust"])


def test_equal_rewards_have_no_volume_and_no_number_is_invented(tmp_path):
    front = sweep(experts(), [{"a": 1, "b": 0}, {"a": 0, "b": 1}], lambda theta: {"a": [1.0], "b": [2.0]})
    content = report(Trial("seed 0", front, morl=front, start=front))
    volume = content["trials"][0]["volumes"][0]
    assert volume["hypervolume"] is None
    assert volume["area"] is None
    assert content["trials"][0]["difference"] is None
    assert any("all points earn the same a, b" in text for _, text in content["trust"])
    assert content["summary"][0]["hypervolume"] == {"mean": None, "error": None}
    write_report(content, tmp_path)


def test_one_expert_is_a_front_of_one_point(tmp_path):
    front = sweep([Expert("a", "a", START)], [{"a": 1}], evaluate)
    content = report(Trial("seed 0", front))
    assert content["trials"][0]["connectivity"] is None
    write_report(content, tmp_path)


def test_warnings_of_a_sweep_come_along():
    same = [Expert(name, name, START, start=experts()[0].start) for name in GOALS]
    front = sweep(same, [{"a": 1, "b": 0}, {"a": 0, "b": 1}], evaluate)
    assert any("its training changed nothing" in text for _, text in report(Trial("x", front))["trust"])


def test_trials_must_be_of_the_same_experts():
    other = Trial("seed 1", sweep([Expert("c", "c", START)], [{"c": 1}], evaluate))
    with pytest.raises(InputError, match="'seed 1' has other experts or rewards than 'seed 0'"):
        report(trial(), other)
    with pytest.raises(InputError, match="at least one"):
        report()


def test_other_numbers_of_points_are_no_fair_hypervolume():
    assert any("5 soups are compared with 3 policies" in text for _, text in report(trial())["trust"])
    same = trial(morl=trial().soups)
    assert not any("are compared with" in text for _, text in report(same)["trust"])
