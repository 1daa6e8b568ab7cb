import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from mirepoix.checkpoints import fingerprint, open_weights, write_weights
from mirepoix.rewards import (
    Expert,
    RewardFront,
    evaluate_policies,
    reward_connectivity,
    simplex_design,
    simplex_lattice,
    sweep,
)
from mirepoix.types import InputError
from mirepoix.weights import interpolate
from tests.rewards.line import LINE, A, B, evaluate, expert


def plain_front(experts, coefficients):
    rows = []
    for shares in coefficients:
        theta = interpolate([e.weights for e in experts], [shares[e.name] for e in experts])
        rows.append([values.tolist() for values in evaluate(theta).values()])
    return np.array(rows)


def counted(function):
    def count(theta):
        count.calls += 1
        return function(theta)

    count.calls = 0
    return count


# What is evaluated


def test_every_soup_is_evaluated_as_interpolate_makes_it():
    front = sweep([A, B], LINE, evaluate)
    assert np.array_equal(front.values, plain_front([A, B], LINE))
    assert front.coefficients == tuple(LINE)
    assert (front.experts, front.rewards) == (("a", "b"), ("a", "b"))
    assert front.trained_on == {"a": "a", "b": "b"}
    assert front.label == "rewarded soup"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_expert_alone_is_given_back_bit_for_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    experts = [
        Expert(name, name, {"w": torch.randn(5, generator=generator).to(dtype)}, start="s") for name in "abc"
    ]
    seen = []

    def keep(theta):
        seen.append(fingerprint(theta))
        return {"r": [1.0]}

    front = sweep(experts, simplex_design(list("abc"), 6), keep)
    assert seen[:3] == [e.fingerprint for e in experts]
    assert front.provenance["experts"] == {e.name: e.fingerprint for e in experts}


def test_soups_of_equal_experts_are_that_expert():
    values = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    experts = [Expert(name, name, {"w": values.clone()}, start="s") for name in "abc"]
    front = sweep(
        experts, simplex_design(list("abc"), 12), lambda theta: {"gap": (theta["w"] - values).abs()}
    )
    assert front.values.max() < 1e-15


def test_one_set_of_tensors_serves_all_soups():
    seen = []

    def look(theta):
        seen.append((theta["w"], theta["w"].__array_interface__["data"][0]))
        return evaluate(theta)

    sweep([A, B], LINE, look)
    assert len({place for _, place in seen}) == 1
    assert A.weights["w"].tolist() == [1.0, 0.0, 0.5]  # experts are not changed


def test_a_model_of_yours_can_be_written_into():
    model = torch.nn.Linear(2, 1)
    experts = [
        Expert(
            name, name, {key: torch.full_like(x, value) for key, x in model.state_dict().items()}, start="s"
        )
        for name, value in (("a", 1.0), ("b", 3.0))
    ]
    places = [parameter.data_ptr() for parameter in model.parameters()]

    def run(theta):
        assert theta["weight"].data_ptr() == places[0]
        with torch.no_grad():
            return {"output": model(torch.ones(4, 2))[:, 0]}

    front = sweep(experts, simplex_lattice(["a", "b"], 2), run, into=model.state_dict())
    assert front.means[:, 0].tolist() == [9.0, 6.0, 3.0]
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert model.weight.requires_grad


def test_dtypes_that_differ_do_not_round_the_soups_of_the_wider():
    half = Expert("a", "a", {"w": torch.tensor([1.0], dtype=torch.float16)}, start="s")
    full = Expert("b", "b", {"w": torch.tensor([1.0001])}, start="s")
    with pytest.warns(UserWarning, match="dtypes differ"):
        front = sweep([half, full], simplex_lattice(["b", "a"], 2), lambda theta: {"w": theta["w"].float()})
    assert front.means[:, 0].tolist() == pytest.approx([1.0, 1.00005, 1.0001], abs=1e-7)


def test_lazy_experts_are_read_from_their_files(tmp_path):
    experts = []
    for e in (A, B):
        write_weights(tmp_path / f"{e.name}.safetensors", e.weights)
        experts.append(
            Expert(e.name, e.reward, open_weights(tmp_path / f"{e.name}.safetensors"), start=e.start)
        )
    front = sweep(experts, LINE, lambda theta: evaluate({"w": np.asarray(theta["w"])}))
    assert np.array_equal(front.values, plain_front([A, B], LINE))


def test_experts_without_a_part_are_not_read():
    class Counting(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            return super().__getitem__(name)

    reads = []
    for points in (LINE[-1:], [LINE[-1], LINE[2]]):  # a alone, then a soup too
        weights = Counting(B.weights)
        sweep([A, Expert("b", "b", weights, start="one start")], points, evaluate)
        reads.append(weights.reads)
    assert reads[1] == reads[0] + len(B.weights)


def test_coefficients_that_come_twice_are_evaluated_once():
    count = counted(evaluate)
    front = sweep([A, B], [LINE[1], LINE[0], LINE[1]], count)
    assert count.calls == 2
    assert np.array_equal(front.values[0], front.values[2])


def test_rewards_may_be_apart_from_the_evaluation():
    front = sweep(
        [A, B],
        LINE,
        lambda theta: theta["w"].copy(),
        rewards={"first": lambda w: [w[0]], "sum": lambda w: [w.sum()]},
        items=1,
    )
    assert front.rewards == ("first", "sum")
    assert front.means[:, 0] == pytest.approx([shares["a"] for shares in LINE])


def test_progress_is_told():
    told = []
    sweep([A, B], LINE, evaluate, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]


def test_extrapolation_is_asked_for():
    beyond = [{"a": 1.5, "b": -0.5}]
    with pytest.raises(InputError, match="extrapolate=True"):
        sweep([A, B], beyond, evaluate)
    front = sweep([A, B], beyond, lambda theta: {"w": theta["w"]}, extrapolate=True)
    assert front.values[0, 0] == pytest.approx(1.5 * A.weights["w"] - 0.5 * B.weights["w"])


def test_a_front_of_a_sweep_goes_through_the_rest():
    front = sweep([A, B], LINE, evaluate)
    found = reward_connectivity(front)
    assert found.holds  # a concave reward on a line lies above its chord
    assert RewardFront.from_json(front.to_json()).provenance == front.provenance


# Diverged experts


def test_a_diverged_expert_is_left_out_with_its_soups():
    broken = expert("c", [0.0, math.nan, 0.0])
    design = simplex_lattice(["a", "b", "c"], 2)
    with pytest.warns(
        UserWarning, match=r"Expert 'c' diverged: 'w' holds NaN or infinity. 3 of 6 points are left out"
    ):
        front = sweep([A, B, broken], design, evaluate)
    assert front.experts == ("a", "b")
    assert [tuple(shares) for shares in front.coefficients] == [("a", "b")] * 3
    assert "diverged" in front.provenance["left_out"]["c"]
    assert np.array_equal(front.values, plain_front([A, B], front.coefficients))


def test_without_an_expert_or_a_point_left_there_is_no_front():
    broken = expert("a", [math.inf] * 3)
    with pytest.raises(InputError, match="all experts diverged"):
        sweep([broken], [{"a": 1}], evaluate)
    with pytest.raises(InputError, match="none without the diverged experts 'a'"):
        sweep([broken, B], [{"a": 0.5, "b": 0.5}], evaluate)


# Cache


def test_values_are_kept_and_found_again(tmp_path):
    count = counted(evaluate)
    options = {"evaluation": "prompts 1", "cache": tmp_path / "cache"}
    front = sweep([A, B], LINE, count, **options)
    assert count.calls == 5
    again = sweep([A, B], LINE, count, **options)
    assert count.calls == 5
    assert again.to_dict() == front.to_dict()
    assert not list((tmp_path / "cache").glob(".*"))
    # More points, and a third expert: what is known stays known.
    sweep([A, B], simplex_lattice(["a", "b"], 8), count, **options)
    assert count.calls == 9
    sweep([A, B, expert("c", [3.0, 3.0, 3.0])], simplex_lattice(["a", "b", "c"], 2), count, **options)
    assert count.calls == 12


def test_names_and_order_of_experts_are_told_apart(tmp_path):
    options = {"evaluation": "prompts 1", "cache": tmp_path}
    front = sweep([A, B], LINE, evaluate, **options)
    count = counted(evaluate)
    turned = sweep([B, A], [dict(reversed(shares.items())) for shares in LINE], count, **options)
    assert count.calls == 0
    assert turned.experts == ("b", "a")
    assert np.array_equal(turned.values, front.values)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": "prompts 2"},
        {"experts": [A, expert("b", [0.0, 1.0, 0.2])]},
    ],
    ids=["evaluation", "weights"],
)
def test_another_evaluation_or_other_weights_are_not_found(change, tmp_path):
    sweep([A, B], LINE, evaluate, evaluation="prompts 1", cache=tmp_path)
    count = counted(evaluate)
    options = {"evaluation": "prompts 1", "cache": tmp_path, **change}
    sweep(options.pop("experts", [A, B]), LINE, count, **options)
    assert count.calls == (5 if "evaluation" in change else 4)  # the first expert alone is the same


@pytest.mark.parametrize(
    "damage", ["", "{", '{"format": 1}', "null", '{"made_of": {}, "values": {"a": [1]}}']
)
def test_a_damaged_file_of_the_cache_is_made_again(damage, tmp_path):
    front = sweep([A, B], LINE, evaluate, evaluation="x", cache=tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(damage)
    again = sweep([A, B], LINE, evaluate, evaluation="x", cache=tmp_path)
    assert np.array_equal(again.values, front.values)
    for path in tmp_path.iterdir():
        assert set(json.loads(path.read_text())) == {"format", "made_of", "values"}


def test_a_reward_that_was_added_is_evaluated(tmp_path):
    options = {"evaluation": "x", "cache": tmp_path}
    few = sweep([A, B], LINE, evaluate, rewards={"a": lambda v: v["a"]}, **options)
    more = sweep([A, B], LINE, evaluate, rewards={"a": lambda v: v["a"], "b": lambda v: v["b"]}, **options)
    assert np.array_equal(more.values[:, :1], few.values)
    count = counted(evaluate)
    fewer = sweep([A, B], LINE, count, rewards={"b": lambda v: v["b"]}, **options)
    assert count.calls == 0
    assert np.array_equal(fewer.values[:, 0], more.values[:, 1])


KILLED = """
import os, sys
import numpy as np
from tests.rewards.line import A, B, LINE, evaluate
from mirepoix.rewards import sweep

calls = 0

def die(theta):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), 9)
    return evaluate(theta)

sweep([A, B], LINE, die, evaluation="x", cache=sys.argv[1])
"""


def test_a_sweep_that_was_killed_goes_on_where_it_stopped(tmp_path, root):
    # Without torch, which would take most of the time.
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, timeout=120)
    assert ended.returncode == -9
    count = counted(evaluate)
    front = sweep([A, B], LINE, count, evaluation="x", cache=tmp_path)
    assert count.calls == 2
    assert np.array_equal(front.values, plain_front([A, B], LINE))


# MORL and other policies


def test_policies_are_evaluated_as_they_are(tmp_path):
    policies = [A.weights, B.weights]
    preferences = [{"a": 0.75, "b": 0.25}, {"a": 0.25, "b": 0.75}]
    options = {"evaluation": "x", "cache": tmp_path, "provenance": {"budget": 3}}
    told = []
    front = evaluate_policies(
        policies, preferences, evaluate, progress=lambda done, total: told.append((done, total)), **options
    )
    assert front.label == "MORL"
    assert front.coefficients == tuple(preferences)
    assert np.array_equal(front.values, plain_front([A, B], [{"a": 1, "b": 0}, {"a": 0, "b": 1}]))
    assert front.provenance["policies"] == [A.fingerprint, B.fingerprint]
    assert front.provenance["budget"] == 3
    assert told == [(1, 2), (2, 2)]
    count = counted(evaluate)
    assert evaluate_policies(policies, preferences, count, **options).to_dict() == front.to_dict()
    assert count.calls == 0


# Errors


def fails(theta):
    raise ValueError("no tokens")


def at(share, result):
    """`evaluate`, but for the soup in which ``a`` has this share."""

    def run(theta):
        return result(theta) if theta["w"][0] == share else evaluate(theta)

    return run


HALF = r"lambda = \{a: 0.5, b: 0.5\}"


@pytest.mark.parametrize(
    ("function", "rewards", "message"),
    [
        (at(0.5, fails), None, f"evaluate failed at {HALF}: ValueError: no tokens"),
        (
            evaluate,
            {"a": lambda v: v["a"], "bad": fails},
            r"reward 'bad' failed at lambda = \{a: 0, b: 1\}: ValueError",
        ),
        (
            at(0.5, lambda theta: {"a": [1, 2, 3, 4], "b": [0, math.nan, 0, math.inf]}),
            None,
            f"reward 'b' at {HALF}: expected finite values, got nan for item 1, and 2 such in all",
        ),
        (
            at(0.5, lambda theta: {"a": [1, 2, 3, 4], "b": [1, 2, 3]}),
            None,
            f"reward 'b' at {HALF}: expected 4 values, one per item, got 3; item 3 is the first without",
        ),
        (at(0.5, lambda theta: {"a": [1, 2, 3, 4]}), None, f"the rewards 'a', 'b' at {HALF}, got 'a'"),
        (
            at(0.5, lambda theta: {"a": 1.0, "b": [1.0]}),
            None,
            f"reward 'a' at {HALF}: expected one number per item",
        ),
        (
            at(0.5, lambda theta: {"a": ["x"], "b": [1.0]}),
            None,
            f"reward 'a' at {HALF}: expected one number per item, got something else",
        ),
        (lambda theta: [1.0], None, "expected values by the name of the reward .*, got list"),
        (
            lambda theta: {"a": [1.0, 2.0], "b": [1.0]},
            None,
            "reward 'b' .*: expected 2 values, one per item, got 1",
        ),
    ],
)
def test_what_fails_names_the_reward_the_coefficients_and_the_item(function, rewards, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sweep([A, B], LINE, function, rewards=rewards, evaluation="x", cache=tmp_path)
    # What came before is kept, what failed is not.
    count = counted(evaluate)
    front = sweep([A, B], LINE, count, evaluation="x", cache=tmp_path)
    assert np.array_equal(front.values, plain_front([A, B], LINE))


def test_the_right_number_of_items_may_be_given():
    with pytest.raises(InputError, match="expected 5 values, one per item, got 4; item 4 is the first"):
        sweep([A, B], LINE, evaluate, items=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sweep([A, B], [{"a": 1.0}], fails),
            "coefficients of point 0: .* one number for each of 'a', 'b'",
        ),
        (lambda: sweep([A, B], [{"a": 0.5, "b": 0.4}], fails), "coefficients of point 0: .* on the simplex"),
        (lambda: sweep([A, B], {"a": 0.5, "b": 0.5}, fails), "a list of mappings, got a single one"),
        (lambda: sweep([A, B], [], fails), "coefficients of at least one point, got none"),
        (
            lambda: sweep([A, expert("b", [1.0] * 3, start=None)], LINE, fails),
            "not known from which weights 'b'",
        ),
        (
            lambda: sweep([A, B], LINE, fails, cache="somewhere"),
            "evaluation: expected a text that names prompts",
        ),
        (lambda: sweep([A, B], LINE, fails, into={"w": np.zeros(3)}), "'count' is missing"),
        (
            lambda: sweep([A, B], LINE, fails, into={"w": np.zeros(4), "count": np.array(0)}),
            "'w' has shape \\(4,\\), and \\(3,\\) in expert 'a'",
        ),
        (lambda: sweep([A, B], LINE, fails, rewards={}), "rewards: expected at least one name"),
        (
            lambda: evaluate_policies([A.weights], [], fails),
            "preferences: expected one for each .* got 0 for 1",
        ),
        (lambda: evaluate_policies([], [], fails), "at least one"),
        (
            lambda: evaluate_policies([A.weights] * 2, [{"a": 1}, {"b": 1}], fails),
            "preferences of policy 1: expected one number for each of 'a', got 'b'",
        ),
        (lambda: evaluate_policies([A.weights], [{"a": 1}], fails), "evaluate failed at mu = \\{a: 1\\}"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_a_forced_sweep_says_so_in_the_front():
    front = sweep([A, expert("b", [0.0, 1.0, 0.1], start=None)], LINE, evaluate, force=True)
    assert "not known" in front.provenance["warnings"][0]
    assert front.provenance["start"] is None
