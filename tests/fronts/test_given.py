"""Fronts of experts from files: what is computed, what is kept, what is refused and in which words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mirepoix.checkpoints import open_weights, write_json, write_weights
from mirepoix.fronts._given import front_of_experts
from mirepoix.fronts._given_rewards import Speaking
from mirepoix.rewards import RewardFront, simplex_design
from mirepoix.types import InputError
from tests.fronts import given

PROMPTS = ["the film is", "the plot was", "a story", "the actor"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, in which modules are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def module(here, request):
    """The rewards of `given.MODULE`, in a module of this test's own."""
    name = given.write_module(here, "m_" + "".join(c if c.isalnum() else "_" for c in request.node.name))
    yield name
    sys.modules.pop(name, None)


def run(paths, rewards, *, names="ab", out="out", **options):
    options = {"start": paths.get("start"), **options}
    return front_of_experts({name: paths[name] for name in names}, rewards, out=out, **options)


# By functions of weights


def test_values_are_those_of_the_functions_at_every_soup(here, module):
    paths = given.write_experts(here)
    found = run(paths, [f"a={module}:a", f"b={module}:b"], points=5)
    front = found.trial.soups
    assert front.shares[:, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    for shares, values in zip(front.shares, front.values, strict=True):
        w = shares[0] * np.array(given.TARGETS["a"]) + shares[1] * np.array(given.TARGETS["b"])
        for k, name in enumerate(front.rewards):
            np.testing.assert_allclose(values[k], given.reward(w, given.TARGETS[name]), atol=1e-6)
    start = found.trial.start
    np.testing.assert_allclose(start.values[0, 0], given.reward((0, 0, 0), given.TARGETS["a"]), atol=1e-6)
    assert dict(front.trained_on) == {"a": "a", "b": "b"}
    kept = RewardFront.load("out/front.json")
    np.testing.assert_array_equal(kept.values, front.values)
    assert found.choice is None
    assert found.export is None


def test_the_function_gets_torch_tensors_and_integers_as_they_are(here, module):
    run(given.write_experts(here), [f"{module}:both"], points=3)
    calls = sys.modules[module].calls
    assert len(calls) == 8  # two in each of the three soups and the start
    assert all(isinstance(tensor, torch.Tensor) for call in calls for tensor in call.values())
    assert {int(call["steps"]) for call in calls} == {7}
    assert calls[2]["w"].tolist() == [0.5, 0.5, 0]


def test_one_function_may_return_rewards_by_name(here, module):
    paths = given.write_experts(here)
    one = run(paths, [f"{module}:both"]).trial.soups
    two = run(paths, [f"{module}:a", f"{module}:b"], out="two").trial.soups
    assert one.rewards == two.rewards == ("a", "b")
    np.testing.assert_array_equal(one.values, two.values)
    with pytest.raises(InputError, match=r"returns rewards by name\. Give it alone"):
        run(paths, [f"x={module}:both"], out="three")


def test_three_experts_take_the_design_of_the_simplex(here, module):
    paths = given.write_experts(here, "abc")
    found = run(paths, [f"{module}:{name}" for name in "abc"], names="abc", points=7, seed=3)
    assert list(found.trial.soups.coefficients) == simplex_design(list("abc"), 7, 3)
    with pytest.raises(InputError, match="--points: expected at least 4, for 3 experts alone"):
        run(paths, [f"{module}:a"], names="abc", points=3)


def test_rewards_may_be_others_than_the_experts_were_trained_on(here, module):
    paths = given.write_experts(here)
    assert dict(run(paths, [f"x={module}:c"]).trial.soups.trained_on) == {}
    told = run(paths, [f"x={module}:a", f"b={module}:b"], trained={"a": "x"}).trial.soups
    assert dict(told.trained_on) == {"a": "x", "b": "b"}
    with pytest.raises(InputError, match="--trained: there is no expert 'z'; there are 'a' and 'b'"):
        run(paths, [f"{module}:a"], trained={"z": "a"})
    with pytest.raises(InputError, match="--trained: there is no reward 'y'; there are 'x' and 'b'"):
        run(paths, [f"x={module}:a", f"b={module}:b"], trained={"a": "y"})


def test_a_preference_chooses_a_point_and_names_its_parts(here, module):
    paths = given.write_experts(here)
    found = run(paths, [f"{module}:a", f"{module}:b"], preference={"a": 3, "b": 1})
    assert found.choice["preference"] == {"a": 0.75, "b": 0.25}
    assert dict(zip("ab", found.export.coefficients, strict=True)) == found.choice["coefficients"]
    assert found.export.members == (str(paths["a"]), str(paths["b"]))
    assert (found.export.adapters, found.export.folders, found.export.base) == (False, False, None)
    alone = run(paths, [f"{module}:a", f"{module}:b"], preference={"b": 1})
    assert alone.export.members == (str(paths["b"]),)
    for preference, text in (
        ({"z": 1}, "no reward 'z'"),
        ({"a": -1}, "weight of 0 or more"),
        ({"a": 0}, "above 0"),
    ):
        with pytest.raises(InputError, match=text):
            run(paths, [f"{module}:a", f"{module}:b"], preference=preference)


def test_what_a_reward_draws_is_the_same_for_all_soups_and_the_generators_stay(here):
    text = "import random, numpy, torch\ndef r(theta):\n"
    text += "    return [random.random(), numpy.random.rand(), float(torch.rand(()))]"
    name = given.write_module(here, "m_draws", text)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    values = run(given.write_experts(here), [f"{name}:r"], points=3).trial.soups.values
    assert (values == values[0]).all()
    assert torch.equal(torch.get_rng_state(), before)
    other = run(given.write_experts(here), [f"{name}:r"], points=3, seed=1).trial.soups.values
    assert (other[0] != values[0]).all()


# What is kept


def test_nothing_is_computed_twice_and_everything_that_decides_counts(here, module):
    paths = given.write_experts(here)
    rewards = [f"{module}:a", f"{module}:b"]
    first = run(paths, rewards).trial.soups
    calls = sys.modules[module].calls
    assert len(calls) == 24
    again = run(paths, rewards).trial.soups
    assert len(calls) == 24
    np.testing.assert_array_equal(first.values, again.values)
    renamed = {"x": paths["a"], "y": paths["b"]}
    front_of_experts(renamed, rewards, out="out", start=paths["start"])
    assert len(calls) == 24
    run(paths, [*rewards, f"{module}:c"])
    assert len(calls) == 36
    run(paths, rewards, points=21)
    assert len(calls) == 36 + 20
    run(paths, rewards, fresh=True)
    assert len(calls) == 56 + 24
    write_weights(paths["a"], {"w": np.array([0.5, 0.0, 0.0], dtype=np.float32), "steps": np.array(7)})
    run(paths, rewards)
    assert len(calls) == 80 + 20  # all but the expert b and the start


def test_another_text_of_the_module_is_another_reward(here):
    paths = given.write_experts(here)
    text = "def r(theta):\n    return [{}, 1.0]\n"
    for value in (1.0, 2.0):
        given.write_module(here, "m_text", text.format(value))
        sys.modules.pop("m_text", None)
        shutil.rmtree("__pycache__", ignore_errors=True)
        front = run(paths, ["m_text:r"]).trial.soups
        assert set(front.values[:, 0, 0].tolist()) == {value}


def test_a_damaged_value_is_computed_again(here, module):
    paths = given.write_experts(here)
    first = run(paths, [f"{module}:a"]).trial.soups
    files = sorted(Path("out/values").glob("*.json"))
    files[0].write_text("{")
    files[1].write_text(files[2].read_text())
    again = run(paths, [f"{module}:a"]).trial.soups
    np.testing.assert_array_equal(first.values, again.values)
    assert len(sys.modules[module].calls) == 12 + 2


def test_fresh_removes_nothing_else(here, module):
    paths = given.write_experts(here)
    run(paths, [f"{module}:a"])
    mine = Path("out/values/notes.json")
    mine.write_text("{}")
    run(paths, [f"{module}:a"], fresh=True)
    assert mine.is_file()


def test_after_kill_9_it_goes_on(here):
    """Killed while it evaluates, the same call evaluates what is left, and gives the same numbers."""
    paths = given.write_experts(here)
    text = given.MODULE + "\nimport time, pathlib\ndef slow(theta):\n"
    text += "    with open('log', 'a') as log:\n        log.write('x')\n"
    text += "    time.sleep(0.0 if pathlib.Path('fast').exists() else 0.2)\n    return both(theta)\n"
    given.write_module(here, "m_slow", text)
    code = "from mirepoix.fronts._given import front_of_experts as f; "
    code += f"f({{'a': '{paths['a']}', 'b': '{paths['b']}'}}, ['m_slow:slow'], out='out', start='{paths['start']}')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    log = Path("log")
    while process.poll() is None and not (log.exists() and len(log.read_text()) >= 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(log.read_text())
    assert not Path("out/front.json").exists()
    Path("fast").touch()
    front = run(paths, ["m_slow:slow"]).trial.soups
    assert len(log.read_text()) <= 12 + 1  # that under way when it was killed is made again, and no other
    assert done >= 4
    np.testing.assert_array_equal(front.values, run(paths, ["m_slow:slow"], out="whole").trial.soups.values)
    assert not list(Path("out").rglob("*.tmp"))


# Rewards that fail


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('boom')", r"reward 'r' at lambda = {a: 0, b: 1}: .*ValueError: boom \(.*line 2\)"),
        ("return [1.0, float('nan')]", r"reward 'r' at .*expected finite numbers, got nan for item 1"),
        (
            "return 1.0",
            r"reward 'r' at .*expected a list with one number per evaluation item, got shape \(\)",
        ),
        ("return 'good'", r"reward 'r' at .*got something else"),
        ("return {}", r"reward 'r' at .*returns no reward"),
        ("return {'x y': [1.0]}", r"--rewards: expected names of letters"),
        (
            "return [1.0] * (2 + int(theta['w'][0] > 0.05))",
            r"reward 'r' at lambda = {a: 0.1, b: 0.9}: expected 2 values, one per item as from .*, got 3. .*--fresh",
        ),
        ("return {'a' if theta['w'][0] < 0.05 else 'b': [1.0]}", r"expected 'a' from .*as before, got 'b'"),
    ],
)
def test_a_reward_that_is_none_names_itself(here, body, said):
    name = "m_fail"
    given.write_module(here, name, f"def r(theta):\n    {body}\n")
    try:
        with pytest.raises(InputError, match=said):
            run(given.write_experts(here), [f"{name}:r"])
    finally:
        sys.modules.pop(name, None)
    assert not Path("out/front.json").exists()


def test_what_was_known_before_a_reward_failed_is_kept(here):
    given.write_module(here, "m_half", "def r(theta):\n    assert theta['w'][0] < 0.5\n    return [1.0]\n")
    with pytest.raises(InputError, match="AssertionError"):
        run(given.write_experts(here), ["m_half:r"])
    assert len(list(Path("out/values").glob("*.json"))) == 5


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([], "--rewards: expected at least one"),
        (["nowhere:f"], "--rewards: there is no module 'nowhere'"),
        (["vader"], r"expected \[NAME=\]MODULE:FUNCTION.*Texts are rewarded with --prompts"),
        (["{m}:z"], "has no 'z'"),
        (["{m}:X"], "to be a function"),
        (["{m}:a", "{m}:a"], "'a' comes twice"),
        (["a b={m}:a"], "expected names of letters"),
        (["a={m}:"], "expected 'module:function'"),
        (["a="], "expected something after the ="),
    ],
)
def test_rewards_that_are_not_there(here, module, rewards, said):
    with pytest.raises(InputError, match=said):
        run(given.write_experts(here), [text.replace("{m}", module) for text in rewards])


# What experts must share


def test_unknown_starts_are_refused_unless_told_or_forced(here, module):
    paths = given.write_experts(here)
    with pytest.raises(
        InputError, match=r"not known from which weights 'a' and 'b' started.*--start PATH; or pass --force"
    ):
        run(paths, [f"{module}:a"], start=None)
    told = run(paths, [f"{module}:a"])
    assert told.warnings == [
        f"It is not known from which weights 'a' and 'b' started; {paths['start']} is taken on your word."
    ]
    forced = run(paths, [f"{module}:a"], start=None, force=True)
    assert forced.warnings == ["It is not known from which weights 'a' and 'b' started."]
    assert forced.trial.start is None


def test_records_tell_the_start(here, module):
    from mirepoix.checkpoints import fingerprint

    paths = given.write_experts(here)
    own = fingerprint(open_weights(paths["start"]))
    for name in "ab":
        write_json(here / f"{name}.json", {"made_of": {"theta": own}})
    alone = run(paths, [f"{module}:a"], start=None)
    assert alone.warnings == []
    assert own[:12] in dict(alone.facts)["Start"]
    both = run(paths, [f"{module}:a"])
    assert both.warnings == []
    assert dict(both.facts)["Start"] == f"{paths['start']}, as the records of all experts say."
    write_json(here / "b.json", {"made_of": {"theta": "f" * 64}})
    with pytest.raises(
        InputError, match=r"experts 'a' and 'b' started from different weights, .*ffffffffffff"
    ):
        run(paths, [f"{module}:a"], start=None)
    with pytest.raises(InputError, match="started from different weights"):
        run(paths, [f"{module}:a"])
    write_json(here / "a.json", {"made_of": {"theta": "f" * 64}})
    with pytest.raises(
        InputError, match=rf"expert 'a' started from the weights ffffffffffff, and --start .* is {own[:12]}"
    ):
        run(paths, [f"{module}:a"])
    assert "different" not in str(run(paths, [f"{module}:a"], start=None).warnings)
    assert "ffffffffffff" in run(paths, [f"{module}:a"], force=True).warnings[0]


def test_names_of_starts_in_settings(here, module):
    for name, start in (("a", "some/base"), ("b", "some/base")):
        (here / name).mkdir()
        write_weights(
            here / name / "model.safetensors", {"w": np.array(given.TARGETS[name], dtype=np.float32)}
        )
        (here / name / "config.json").write_text(json.dumps({"_name_or_path": start}))
    write_weights(here / "start.safetensors", {"w": np.zeros(3, dtype=np.float32)})
    paths = {"a": here / "a", "b": here / "b", "start": here / "start.safetensors"}
    found = run(paths, [f"{module}:a"], start=None, preference={"a": 1})
    assert dict(found.facts)["Start"] == "The same by its name, some/base."
    assert found.export.folders
    (here / "b" / "config.json").write_text(json.dumps({"_name_or_path": "other/base"}))
    with pytest.raises(InputError, match=r"name different starts in their config\.json: 'some/base' for 'a'"):
        run(paths, [f"{module}:a"], start=None)
    assert "taken on your word" in run(paths, [f"{module}:a"]).warnings[0]


def test_other_shapes_are_refused_with_both_names(here, module):
    paths = given.write_experts(here)
    write_weights(paths["b"], {"w": np.zeros(4, dtype=np.float32), "steps": np.array(7)})
    with pytest.raises(InputError, match=rf"front: .*{paths['a']} and {paths['b']} do not fit each other"):
        run(paths, [f"{module}:a"], start=None, force=True)
    with pytest.raises(InputError, match="expected weights, got nothing there"):
        front_of_experts({"a": "a.safetensors", "z": "z.safetensors"}, [f"{module}:a"], out="out")


def test_a_diverged_expert_is_left_out_and_told(here, module):
    paths = given.write_experts(here, "abc")
    write_weights(paths["b"], {"w": np.array([1.0, np.nan, 0], dtype=np.float32), "steps": np.array(7)})
    found = run(paths, [f"{module}:{name}" for name in "abc"], names="abc")
    assert found.trial.soups.experts == ("a", "c")
    assert len(found.trial.soups) == 11
    told = found.trial.soups.provenance["left_out"]
    assert told == {"b": f"Expert 'b' ({paths['b']}) diverged and is left out: 'w' holds NaN or infinity."}
    with pytest.raises(InputError, match=r"two experts or more that are finite\. Expert 'b'"):
        run(paths, [f"{module}:a"], names="ab")


def test_experts_that_repeat_are_told(here, module):
    paths = given.write_experts(here)
    shutil.copyfile(paths["a"], here / "c.safetensors")
    shutil.copyfile(paths["start"], here / "d.safetensors")
    experts = {"a": paths["a"], "c": here / "c.safetensors", "d": here / "d.safetensors"}
    found = front_of_experts(experts, [f"{module}:a"], out="out", start=paths["start"], points=4)
    assert found.warnings[1:] == [
        "The weights of expert 'c' are those of expert 'a'.",
        "The weights of expert 'd' are those of the start.",
    ]


def test_a_diverged_adapter_is_left_out(here, model, adapters, speaking):
    bad = shutil.copytree(adapters["two"], here / "bad")
    theta = dict(open_weights(bad / "adapter_model.safetensors"))
    name = next(iter(theta))
    theta[name] = theta[name] * float("inf")
    write_weights(bad / "adapter_model.safetensors", theta)
    paths = {**adapters, "bad": bad}
    found = run(paths, ["length"], names=("one", "bad", "two"), points=4, speaking=speaking)
    assert found.trial.soups.experts == ("one", "two")
    assert found.trial.soups.provenance["left_out"]["bad"].startswith(f"Expert 'bad' ({bad}) diverged")


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        ({"a": "a.safetensors"}, "expected two or more experts, got 1. They go before the options"),
        ({"a b": "a.safetensors", "c": "b.safetensors"}, "names of experts without spaces"),
    ],
)
def test_experts_that_are_no_experts(here, module, experts, said):
    given.write_experts(here)
    with pytest.raises(InputError, match=said):
        front_of_experts(experts, [f"{module}:a"], out="out")


def test_two_points_are_the_least(here, module):
    paths = given.write_experts(here)
    assert len(run(paths, [f"{module}:a"], points=2).trial.soups) == 2
    with pytest.raises(InputError, match="--points: expected at least 2, for both ends, got 1"):
        run(paths, [f"{module}:a"], points=1)


def test_what_lies_beside_an_expert_is_not_replaced(here, module):
    paths = given.write_experts(here)
    paths["a"] = paths["a"].rename(here / "front.safetensors")
    (here / "front.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"front.json: lies beside the expert .* and would be replaced"):
        run(paths, [f"{module}:a"], out=".")
    assert (here / "front.json").read_text() == '{"mine": 1}'


def test_the_folder_is_held_by_one_process(here, module):
    import filelock

    paths = given.write_experts(here)
    Path("out").mkdir()
    with filelock.FileLock("out/.lock"), pytest.raises(InputError, match="another process is working"):
        run(paths, [f"{module}:a"])
    Path("file").touch()
    with pytest.raises(InputError, match="expected a folder for the results, got a file"):
        run(paths, [f"{module}:a"], out="file")


# Language models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")
    pytest.importorskip("peft", reason="pip install 'mirepoix[text]'")
    return given.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Two adapters of different ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": given.write_adapter(model, folder / "one", 1),
        "two": given.write_adapter(model, folder / "two", 2, rank=3),
        "start": model.folder,
    }


@pytest.fixture
def speaking(here):
    (here / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return Speaking(prompts=here / "prompts.txt", max_tokens=6, device="cpu")


def test_soups_of_adapters_say_what_the_exact_soup_says(here, model, adapters, speaking):
    from mirepoix.merging import open_adapter
    from mirepoix.rewards.text import AdaptedWeights, TextEvaluation, TextModel, distinct, length_target

    found = run(adapters, ["length", "distinct-2"], names=("one", "two"), points=4, speaking=speaking)
    front = found.trial.soups
    members = {name: open_adapter(adapters[name]) for name in ("one", "two")}
    evaluate = TextEvaluation(
        TextModel(model, device="cpu"), PROMPTS, [length_target(), distinct(2)], max_tokens=6
    )
    for shares, values in zip(front.coefficients, front.values, strict=True):
        expected = evaluate(AdaptedWeights(model.weights, members, shares))
        for k, name in enumerate(("length", "distinct-2")):
            np.testing.assert_array_equal(values[k], expected[name])
    np.testing.assert_array_equal(found.trial.start.values[0, 0], evaluate(model.weights)["length"])
    labels = [column["label"] for column in found.samples["columns"]]
    assert labels == ["start", "one", "two", "one 0.333, two 0.667"]
    assert [item["prompt"] for item in found.samples["items"]] == [PROMPTS[0], PROMPTS[2], PROMPTS[3]]
    said = evaluate.completions(AdaptedWeights(model.weights, {"one": members["one"]}))
    assert found.samples["columns"][1]["answers"] == [said[0], said[2], said[3]]
    assert found.warnings == []


def test_adapters_find_the_base_they_name(here, model, adapters, speaking, module):
    found = run(adapters, ["length"], names=("one", "two"), start=None, points=2, speaking=speaking)
    assert found.trial.start is None
    assert dict(found.facts)["Start"] == f"The base that all adapters name, {model.folder}."
    copies = {name: shutil.copytree(adapters[name], here / name) for name in ("one", "two")}
    for copy in copies.values():
        given.settings(copy, base_model_name_or_path="some/hub-name")
    with pytest.raises(
        InputError, match=r"adapters of 'some/hub-name', and there is no such folder here.*--start FOLDER"
    ):
        run(copies, ["length"], names=("one", "two"), start=None, speaking=speaking)
    assert (
        run(
            copies, ["length"], names=("one", "two"), start=model.folder, points=2, speaking=speaking
        ).warnings
        == []
    )
    given.settings(copies["two"], base_model_name_or_path="other/base")
    with pytest.raises(InputError, match=r"(?s)2 adapters cannot be averaged.*'other/base'.*'some/hub-name'"):
        run(copies, ["length"], names=("one", "two"), start=model.folder, speaking=speaking, force=True)


def test_adapters_that_name_no_base_need_a_word(here, model, adapters, speaking):
    copies = {name: shutil.copytree(adapters[name], here / name) for name in ("one", "two")}
    for copy in copies.values():
        given.settings(copy, base_model_name_or_path=None)
    found = run(copies, ["length"], names=("one", "two"), start=model.folder, points=2, speaking=speaking)
    assert "taken on your word" in found.warnings[0]
    for copy in copies.values():  # as our own trainer of texts writes it
        given.settings(copy, base_model_name_or_path=model.fingerprint[:16])
    assert (
        run(
            copies, ["length"], names=("one", "two"), start=model.folder, points=2, speaking=speaking
        ).warnings
        == []
    )
    for copy in copies.values():
        given.settings(copy, base_model_name_or_path="0123456789abcdef")
    with pytest.raises(InputError, match="started from the weights 0123456789ab, and --start"):
        run(copies, ["length"], names=("one", "two"), start=model.folder, speaking=speaking)


def test_functions_of_weights_get_the_dense_soup_of_adapters(here, model, adapters):
    text = "calls = []\ndef r(theta):\n    calls.append({n: t.clone() for n, t in theta.items()})\n    return [0.0]\n"
    name = given.write_module(here, "m_dense", text)
    run(adapters, [f"{name}:r"], names=("one", "two"), points=3)
    from mirepoix.merging import open_adapter
    from mirepoix.rewards.text import AdaptedWeights

    members = {key: open_adapter(adapters[key]) for key in ("one", "two")}
    exact = AdaptedWeights(model.weights, members, {"one": 0.5, "two": 0.5})
    theta = sys.modules[name].calls[1]
    assert set(theta) == set(model.weights)
    for key in theta:
        torch.testing.assert_close(theta[key], exact[key])
    assert torch.equal(
        sys.modules[name].calls[3]["model.embed_tokens.weight"], theta["model.embed_tokens.weight"]
    )


def test_a_start_that_is_an_adapter(here, model, adapters, speaking):
    sft = given.write_adapter(model, here / "sft", 9)
    found = run(adapters, ["length"], names=("one", "two"), start=sft, points=2, speaking=speaking)
    from mirepoix.merging import open_adapter
    from mirepoix.rewards.text import AdaptedWeights, TextEvaluation, TextModel, length_target

    evaluate = TextEvaluation(TextModel(model, device="cpu"), PROMPTS, [length_target()], max_tokens=6)
    expected = evaluate(AdaptedWeights(model.weights, {"sft": open_adapter(sft)}))
    np.testing.assert_array_equal(found.trial.start.values[0, 0], expected["length"])


def test_whole_language_models(here, model, speaking):
    paths = {"start": model.folder}
    for seed, name in enumerate("ab"):
        shutil.copytree(model.folder, here / name)
        random = np.random.default_rng(seed)
        theta = {key: model.weights[key].numpy() for key in model.weights}
        theta = {
            key: value + 0.05 * random.normal(size=value.shape).astype(np.float32)
            for key, value in theta.items()
        }
        write_weights(here / name / "model.safetensors", theta)
        paths[name] = here / name
    found = run(paths, ["length", "distinct-2"], points=3, speaking=speaking, preference={"length": 1})
    assert found.export.folders
    assert len(found.samples["columns"]) == 5
    with pytest.raises(InputError, match="needs a network and its tokenizer"):
        run(paths, ["length"], start=None, force=True, speaking=speaking)
    file = here / "b" / "tokenizer.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "truncation": {"max_length": 8}}))
    run(paths, ["length"], points=2, speaking=speaking)  # how a trainer cut its texts is no other tokenizer
    settings["model"]["vocab"] = dict(list(settings["model"]["vocab"].items())[::-1][1:])
    file.write_text(json.dumps(settings))
    with pytest.raises(
        InputError, match=r"--start and expert 'b' have different tokenizers \(tokenizer.json in"
    ):
        run(paths, ["length"], speaking=speaking)


def test_completions_are_kept_apart_from_rewards(here, adapters, speaking, monkeypatch):
    from mirepoix.rewards.text import TextModel

    said = []
    complete = TextModel.complete
    monkeypatch.setattr(
        TextModel, "complete", lambda self, *a, **k: said.append(1) or complete(self, *a, **k)
    )
    options = {"names": ("one", "two"), "points": 3, "speaking": speaking}
    first = run(adapters, ["length"], **options).trial.soups
    assert len(said) == 4
    more = run(adapters, ["length", "distinct-2", "readability"], **options, preference={"length": 1})
    assert len(said) == 4
    np.testing.assert_array_equal(more.trial.soups.values[:, 0], first.values[:, 0])
    warm = Speaking(prompts=speaking.prompts, max_tokens=6, temperature=0.8, device="cpu")
    drawn = run(adapters, ["length"], **options | {"speaking": warm})
    assert len(said) == 8
    assert "temperature 0.8" in dict(drawn.facts)["Completions"]
    run(adapters, ["length"], **options | {"speaking": warm}, fresh=True)
    assert len(said) == 12


def test_a_text_reward_that_fails_names_the_prompt(here, adapters, speaking):
    text = "def bad(prompts, completions, **c):\n    for p in prompts:\n        assert 'story' not in p, 'no story'\n"
    text += "    return [0.0] * len(prompts)\n"
    text += "def nan(prompts, completions, **c):\n    return [float('nan') if 'plot' in p else 0.0 for p in prompts]\n"
    text += "def few(prompts, completions, **c):\n    return [0.0]\n"
    text += "def joint(prompts, completions, **c):\n    assert len(prompts) < 2\n    return [0.0]\n"
    name = given.write_module(here, "m_texts", text)
    for function, said in (
        (
            "bad",
            r"reward 'bad' failed for the prompt 'a story' and .*AssertionError: no story \(at lambda = ",
        ),
        (
            "nan",
            r"reward 'nan': expected a finite number, got nan for the prompt 'the plot was'.*\(at lambda = ",
        ),
        (
            "few",
            r"reward 'few': expected one number per completion, 4, got 1; the first prompt is .*\(at lambda",
        ),
        ("joint", r"for all 4 prompts together, of which the first is 'the film is'"),
    ):
        with pytest.raises(InputError, match=said):
            run(adapters, [f"{name}:{function}"], names=("one", "two"), speaking=speaking)
    given.write_module(here, "m_broken", "def")
    with pytest.raises(InputError, match="could not be imported: SyntaxError"):
        run(adapters, ["m_broken:f"], names=("one", "two"), speaking=speaking)


def test_columns_of_the_prompts_reach_the_rewards(here, adapters):
    rows = [{"prompt": text, "reference": "a good film", "weight": i} for i, text in enumerate(PROMPTS)]
    (here / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = given.write_module(
        here, "m_columns", "def w(prompts, completions, weight, **c):\n    return weight\n"
    )
    speaking = Speaking(prompts=here / "p.jsonl", max_tokens=4, device="cpu")
    front = run(adapters, [f"w={name}:w"], names=("one", "two"), points=2, speaking=speaking).trial.soups
    assert front.values[0, 0].tolist() == [0, 1, 2, 3]
    (here / "p.txt").write_text("\n".join(PROMPTS))
    plain = Speaking(prompts=here / "p.txt", max_tokens=4, device="cpu")
    pytest.importorskip("rouge_score", reason="pip install 'mirepoix[text]'")
    with pytest.raises(InputError, match=r"reward 'rouge-l': needs the key 'reference' beside each prompt"):
        run(adapters, ["rouge-l"], names=("one", "two"), speaking=plain)
    run(adapters, ["rouge-l"], names=("one", "two"), points=2, speaking=speaking)


def test_a_classifier_in_a_folder(here, model, adapters, speaking):
    import transformers

    from mirepoix.rewards.text._libraries import quiet

    with quiet():
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(model.folder)
        config.id2label = {0: "bad", 1: "good"}
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(here / "judge")
        model.tokenizer.save_pretrained(here / "judge")
    options = {"names": ("one", "two"), "points": 2, "speaking": speaking}
    with pytest.raises(InputError, match=r"2 labels, bad, good.*--rewards judge=judge:LABEL"):
        run(adapters, ["judge"], **options)
    front = run(adapters, ["judge:good", "kind=judge:bad"], **options).trial.soups
    assert front.rewards == ("judge", "kind")


@pytest.mark.parametrize(
    ("reward", "made_of"),
    [
        ("length", {"kind": "length_target", "words": 5, "slack": 15.0}),
        ("short=length-2", {"kind": "length_target", "words": 2, "slack": 15.0}),
        ("distinct-3", {"kind": "distinct", "order": 3}),
        ("readability", {"kind": "automated_readability", "easier": True}),
    ],
)
def test_built_in_rewards(reward, made_of):
    from mirepoix.fronts._given_rewards import _text_reward

    found = _text_reward(reward)
    assert (found.name, dict(found.made_of)) == (reward.partition("=")[0], made_of)


def test_every_built_in_name_is_one():
    from mirepoix.fronts._given_rewards import _is_built_in, _text_reward
    from mirepoix.rewards.text import BUILTIN

    assert all(map(_is_built_in, BUILTIN))
    with pytest.raises(InputError, match="one of length, distinct-2, readability"):
        _text_reward("elegance")


def test_a_reward_of_texts_needs_prompts_and_a_model_room(here, adapters, speaking):
    long = Speaking(prompts=speaking.prompts, max_tokens=100_000, device="cpu")
    with pytest.raises(InputError, match="so max_tokens can be"):
        run(adapters, ["length"], names=("one", "two"), speaking=long)
    odd = Speaking(prompts=speaking.prompts, device="abacus")
    with pytest.raises(InputError, match="device: expected 'auto'"):
        run(adapters, ["length"], names=("one", "two"), speaking=odd)


def test_dora_is_refused_with_what_to_do(here, model, adapters, speaking):
    copies = {name: shutil.copytree(adapters[name], here / name) for name in ("one", "two")}
    theta = dict(open_weights(copies["two"] / "adapter_model.safetensors"))
    for name in [name for name in theta if name.endswith("lora_B.weight")]:
        vector = name.replace("lora_B.weight", "lora_magnitude_vector")
        theta[vector] = torch.ones(theta[name].shape[0])
    write_weights(copies["two"] / "adapter_model.safetensors", theta)
    given.settings(copies["two"], use_dora=True)
    with pytest.raises(
        InputError, match=r"adapter 'two': has more than plain LoRA.*mirepoix soup .*two --lora dense"
    ):
        run(copies, ["length"], names=("one", "two"), start=model.folder, speaking=speaking)


# Prompts


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "\n \n", "expected a prompt per line, got none"),
        ("p.csv", "a", "expected a .txt, .json or .jsonl file, got '.csv'"),
        ("p.jsonl", '{"prompt": "a"}\n{', "line 2 is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"text": "b"}', "'prompt' is a text in line 3"),
        ("p.json", '{"prompt": "a"}', "expected a list of objects, got dict"),
        ("p.json", "[]", "expected objects with the key 'prompt', got none"),
        ("p.json", '[{"prompt": [{"role": "user"}]}]', "in entry 1, got .*chat template"),
        ("p.json", '[{"prompt": "a", "x": 1}, {"prompt": "b"}]', "'x' is not both in entry 1 and in entry 2"),
        ("p.json", '[{"prompt": "a", "completion": "b"}]', "'completion' has a meaning of its own"),
    ],
)
def test_prompts_that_are_none(here, name, text, said):
    from mirepoix.fronts._prompts import read_prompts
    from mirepoix.rewards.text._generate import check_columns

    (here / name).write_text(text)
    with pytest.raises(InputError, match=said):
        check_columns(read_prompts(here / name)[1], 1)


def test_prompts_are_read_as_they_are(here):
    from mirepoix.fronts._prompts import read_prompts

    (here / "p.txt").write_bytes("one \r\n\nzwölf\u2028drei\n".encode())
    assert read_prompts(here / "p.txt") == (["one ", "zwölf\u2028drei"], {})
    (here / "p.json").write_text('[{"prompt": "a", "n": 1}, {"n": 2, "prompt": "b"}]')
    assert read_prompts(here / "p.json") == (["a", "b"], {"n": [1, 2]})
