"""``mirepoix front``: from files of experts to a page, a front and the chosen weights."""

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
from tests.fronts import given

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.rewards import RewardFront


@pytest.fixture
def work(cli, monkeypatch):
    """Experts, their start and a module of rewards in the current folder, and the command line."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    given.write_experts(Path(), "abc")
    name = given.write_module(Path(), "front_rewards")
    yield lambda *words: cli("front", *words)
    sys.modules.pop(name, None)


TWO = ("a.safetensors", "b.safetensors", "--start", "start.safetensors")
REWARDS = ("--rewards", "front_rewards:a", "front_rewards:b", "--out", "out")


def refused(result, *fragments):
    assert result.code == 2, result.err
    assert "mirepoix: " in result.err
    for fragment in fragments:
        assert fragment in result.err
    assert not result.out


def test_the_table_the_verdict_and_the_page(work):
    result = work(*TWO, *REWARDS)
    assert result.code == 0, result.err
    assert "rewarded soup" in result.out
    assert "linearly connected" in result.out
    assert result.out.endswith(f"Report: {Path('out', 'report.html')}\n")
    assert "soup 11 of 11: a 1" in result.err
    for name in ("report.html", "report.md", "report.json", "front.json"):
        assert Path("out", name).stat().st_size
    assert not list(Path("out").glob("chosen*"))
    assert "run the command again with --preference" in Path("out/report.md").read_text().replace("\\", "")
    content = json.loads(Path("out/report.json").read_text())
    assert content["choice"] is None
    assert content["command"].startswith("mirepoix front a.safetensors b.safetensors --start")
    assert content["title"] == "Rewarded soups of a, b"


def test_json_is_the_report_alone(work):
    result = work(*TWO, *REWARDS, "--points", 3, "--json")
    content = json.loads(result.out)
    assert content == json.loads(Path("out/report.json").read_text())
    roles = [front["role"] for front in content["trials"][0]["fronts"]]
    assert roles == ["soup", "start"]


def test_the_chosen_weights_are_those_of_a_soup_with_its_record(work, cli):
    result = work(*TWO, *REWARDS, "--preference", "a=0.7,b=0.3")
    assert result.code == 0, result.err
    choice = json.loads(Path("out/report.json").read_text())["choice"]
    assert choice["exported"] == str(Path("out", "chosen.safetensors"))
    shares = choice["coefficients"]
    w = open_weights("out/chosen.safetensors", framework="numpy")["w"]
    np.testing.assert_allclose(w, [shares["a"], shares["b"], 0], atol=1e-7)
    assert f"Chosen: a {shares['a']:.3g}, b {shares['b']:.3g} (a " in result.out
    verified = cli("rebuild", "out/chosen.json", "--verify")
    assert verified.code == 0
    assert "the same bits again" in verified.out
    other = work(*TWO, *REWARDS, "--preference", "b=1")
    assert other.code == 0, other.err
    np.testing.assert_array_equal(open_weights("out/chosen.safetensors", framework="numpy")["w"], [0, 1, 0])
    assert cli("rebuild", "out/chosen.json", "--verify").code == 0


def test_options_with_several_values_and_names(work):
    result = work(
        "good=a.safetensors", "b.safetensors", "third=c.safetensors", "--force", "--points", 5, "--seed", 2,
        "--trained", "good=x", "third=b", "--rewards", "x=front_rewards:a", "front_rewards:b", "-o", "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    front = RewardFront.load("out/front.json")
    assert front.experts == ("good", "b", "third")
    assert dict(front.trained_on) == {"good": "x", "third": "b", "b": "b"}
    assert len(front) == 5


def test_the_second_time_nothing_is_evaluated(work):
    first = work(*TWO, *REWARDS)
    sys.modules["front_rewards"].calls.clear()
    again = work(*TWO, *REWARDS, "--preference", "a=1")
    assert (first.code, again.code) == (0, 0)
    assert not sys.modules["front_rewards"].calls
    assert work(*TWO, *REWARDS, "--fresh").code == 0
    assert len(sys.modules["front_rewards"].calls) == 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TWO, "--rewards", "front_rewards:a"), ["expected a folder for the results", "-o FOLDER"]),
        ((*REWARDS, "--force"), ["expected two or more experts, got 0", "They go before the options"]),
        (("a.safetensors", *REWARDS), ["expected two or more experts, got 1"]),
        ((*TWO, "--out", "out"), ["--rewards: expected at least one"]),
        (("a.safetensors", "b.safetensors", *REWARDS), ["not known", "--start PATH; or pass --force"]),
        (("a.safetensors", "./a.safetensors", *REWARDS), ["two experts are called 'a'", "first=a.safetensors second="]),
        (("=a.safetensors", "b.safetensors", *REWARDS), ["names of experts"]),
        (("a=", "b.safetensors", *REWARDS), ["expected NAME=PATH, got 'a='"]),
        ((*TWO, *REWARDS, "--preference", "a"), ["such as a=0.7,b=0.3, got 'a'"]),
        ((*TWO, *REWARDS, "--preference", "a=much"), ["got 'a=much'"]),
        ((*TWO, *REWARDS, "--preference", "a=1,a=2"), ["'a' comes twice"]),
        ((*TWO, *REWARDS, "--preference", "z=1"), ["--preference: there is no reward 'z'"]),
        ((*TWO, *REWARDS, "--preference", ","), ["expected REWARD=WEIGHT"]),
        ((*TWO, *REWARDS, "--trained", "a"), ["--trained: expected EXPERT=REWARD, got 'a'"]),
        ((*TWO, *REWARDS, "--dense"), ["--dense: goes with --preference"]),
        ((*TWO, *REWARDS, "--dense", "--preference", "a=1"), ["--dense: goes with adapters"]),
        ((*TWO, *REWARDS, "--max-tokens", "4"), ["--max-tokens: goes with --prompts"]),
        ((*TWO, *REWARDS, "--prompts", "p.txt", "--max-tokens", "0"), ["--max-tokens: expected at least 1"]),
        ((*TWO, *REWARDS, "--prompts", "p.txt", "--temperature", "-1"), ["--temperature: expected 0 or"]),
        ((*TWO, *REWARDS, "--prompts", "p.txt"), ["start.safetensors: expected a folder"]),
    ],
)  # fmt: skip
def test_bad_input_is_code_2(work, words, said):
    refused(work(*words), *said)


def test_an_expert_is_never_replaced_by_the_chosen_weights(work):
    Path("out").mkdir()
    Path("a.safetensors").rename("out/chosen.safetensors")
    before = Path("out/chosen.safetensors").read_bytes()
    words = ("a=out/chosen.safetensors", "b.safetensors", "--start", "start.safetensors")
    refused(work(*words, *REWARDS, "--preference", "a=1"), "chosen.safetensors")
    assert Path("out/chosen.safetensors").read_bytes() == before


def test_a_killed_job_says_that_it_continues(work):
    """Ctrl-C leaves what is known, and the message says so; the same command goes on."""
    head = "    def reward(theta):\n"
    wait = "import os, time; time.sleep(0.0 if os.path.exists('fast') else 0.2)"
    slow = given.MODULE.replace(head, f"{head}        {wait}\n")
    Path("slow_rewards.py").write_text(slow)
    words = ["front", *TWO, "--rewards", "slow_rewards:a", "--out", "out"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "mirepoix", *words],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    values = Path("out/values")
    while process.poll() is None and not (values.is_dir() and len(list(values.glob("*.json"))) >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "the same command continues where it was" in err
    kept = {file.name for file in values.glob("*.json")}
    assert len(kept) >= 2
    Path("fast").touch()
    assert work(*words[1:]).code == 0
    assert kept < {file.name for file in values.glob("*.json")}


def test_help_loads_no_torch():
    code = "import sys\nsys.argv = ['mirepoix', 'front', '--help']\nfrom mirepoix.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert "REWARD=WEIGHT" in done.stdout
    assert "torch" not in done.stdout.splitlines()[-1]


# Language models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")
    pytest.importorskip("peft", reason="pip install 'mirepoix[text]'")
    folder = tmp_path_factory.mktemp("model")
    start = given.language_model(folder)
    for seed, name in enumerate(("long", "varied")):
        given.write_adapter(start, folder / name, seed, rank=2 + seed)
    return start


@pytest.fixture
def text(model, cli):
    Path("prompts.txt").write_text("the film is\nthe plot was\na story\n")
    folder = model.folder.parent
    words = [
        folder / "long",
        folder / "varied",
        "--prompts",
        "prompts.txt",
        "--max-tokens",
        5,
        "--device",
        "cpu",
    ]
    words += ["--points", 3, "--rewards", "length", "distinct-2", "-o", "out"]
    return lambda *more: cli("front", *words, *more)


def test_adapters_of_a_language_model(text, model, cli):
    result = text(
        "--start", model.folder, "--preference", "length=0.5,distinct-2=0.5", "--trained", "long=length"
    )
    assert result.code == 0, result.err
    content = json.loads(Path("out/report.json").read_text())
    labels = [column["label"] for column in content["samples"]["columns"]]
    assert labels[:4] == ["start", "long", "varied", "long 0.5, varied 0.5"]
    assert labels[4].startswith("chosen: ")
    assert content["choice"]["exported"] == str(Path("out", "chosen"))
    assert Path("out/chosen/adapter_config.json").is_file()
    assert cli("rebuild", "out/chosen", "--verify").code == 0


def test_the_chosen_adapter_and_the_dense_model_say_what_was_measured(text, model):
    from mirepoix.merging import open_adapter
    from mirepoix.rewards.text import AdaptedWeights, TextModel, TextStart

    preference = ("--preference", "distinct-2=1")
    assert text(*preference).code == 0
    chosen = json.loads(Path("out/report.json").read_text())
    said = next(c["answers"] for c in chosen["samples"]["columns"] if c["label"].startswith("chosen"))
    prompts = Path("prompts.txt").read_text().splitlines()
    speak = TextModel(model, device="cpu")
    speak.write_(AdaptedWeights(model.weights, {"soup": open_adapter("out/chosen")}))
    assert speak.complete(prompts, max_tokens=5) == said
    result = text(*preference, "--dense")
    assert result.code == 0, result.err
    assert not Path("out/chosen/adapter_config.json").exists()
    dense = TextModel(TextStart("out/chosen"), device="cpu")
    assert dense.complete(prompts, max_tokens=5) == said


def test_whole_models_in_folders_are_chosen_as_a_folder(model, cli):
    for seed, name in enumerate("ab"):
        shutil.copytree(model.folder, name)
        random = np.random.default_rng(seed)
        theta = {key: model.weights[key].numpy() for key in model.weights}
        theta = {
            key: value + 0.05 * random.normal(size=value.shape).astype(np.float32)
            for key, value in theta.items()
        }
        write_weights(Path(name, "model.safetensors"), theta)
    Path("prompts.jsonl").write_text('{"prompt": "the film is"}\n{"prompt": "a story"}\n')
    result = cli(
        "front", "a", "b", "--start", model.folder, "--prompts", "prompts.jsonl", "--max-tokens", 4, "--device", "cpu",
        "--points", 3, "--rewards", "length", "--preference", "length=1", "--out", "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert {"config.json", "tokenizer.json", "model.safetensors", "model.json"} <= {
        file.name for file in Path("out/chosen").iterdir()
    }
    assert cli("rebuild", "out/chosen", "--verify").code == 0
