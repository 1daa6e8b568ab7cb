import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mirepoix.checkpoints import fingerprint, open_weights, read_json
from mirepoix.fronts import load_front_recipe, run_front
from mirepoix.report import read_report, write_report
from mirepoix.rewards import RewardFront
from mirepoix.types import Diverged, InputError

SMALL = """
name = "small"
[front]
subject = "locomotion"
experts = ["risky", "cautious"]
points = 3
seeds = [0, 1]
ensemble = "all"
[task]
episode_steps = 30
[start]
reward = {risky = 0.9, cautious = 0.1}
hidden = [8]
steps = 256
environments = 2
rollout_steps = 64
batch_size = 32
checkpoint_every = 1
[run]
steps = 256
environments = 2
rollout_steps = 64
batch_size = 32
checkpoint_every = 1
[evaluation]
episodes = 2
"""


@pytest.fixture(scope="module")
def control():
    for name in ("stable_baselines3", "gymnasium", "mujoco"):
        pytest.importorskip(name, reason="pip install 'mirepoix[control]'")


def run(path, out, *settings):
    recipe, path = load_front_recipe(path, settings)
    return run_front(recipe, recipe_path=path, out=out, command="mirepoix run small")


@pytest.fixture(scope="module")
def done(control, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.toml").write_text(SMALL)
    return folder, run(folder / "small.toml", folder / "out")


def test_the_whole_story(done):
    folder, content = done
    write_report(content, folder / "out")
    assert read_report(folder / "out") == json.loads(json.dumps(content))
    assert [trial["name"] for trial in content["trials"]] == ["seed 0", "seed 1"]
    for trial in content["trials"]:
        assert [front["role"] for front in trial["fronts"]] == ["soup", "morl", "ensemble", "start"]
        assert [len(front["rows"]) for front in trial["fronts"]] == [3, 3, 3, 1]
        assert [volume["trainings"] for volume in trial["volumes"]] == [2, 3, 2]
        assert trial["connectivity"] is not None
    assert content["command"] == "mirepoix run small"
    assert content["environment"]["torch"]


def test_seeds_are_trials_of_their_own(done):
    one, two = done[1]["trials"]
    assert one["fronts"][0]["rows"] != two["fronts"][0]["rows"]


def test_morl_with_one_reward_is_the_expert_and_not_trained_again(done):
    trial = done[1]["trials"][0]
    soups, morl = trial["fronts"][0]["rows"], trial["fronts"][1]["rows"]
    ends = {tuple(row["coefficients"].values()): row["means"] for row in soups}
    assert morl[0]["means"] == ends[1.0, 0.0]
    assert morl[1]["means"] == ends[0.0, 1.0]
    kept = list((done[0] / "out" / "store" / "weights").iterdir())
    assert len(kept) == 2 * (1 + 2 + 1)


def test_the_ensemble_of_one_expert_alone_is_that_expert(done):
    trial = done[1]["trials"][0]
    soups, ensemble = trial["fronts"][0]["rows"], trial["fronts"][2]["rows"]
    for row in (0, 2):
        for name, value in soups[row]["means"].items():
            assert ensemble[row]["means"][name] == pytest.approx(value, rel=1e-5)


def test_the_chosen_weights_are_the_soup_and_state_what_they_are(done):
    folder, content = done
    record = read_json(folder / "out" / "choice.json")
    assert record["coefficients"] == content["choice"]["coefficients"]
    assert record["seed"] == 0
    assert content["choice"]["exported"] == "chosen.safetensors"
    weights = open_weights(folder / "out" / "chosen.safetensors")
    front = RewardFront.load(folder / "out" / "fronts" / "seed-0-soup.json")
    fingerprints = front.provenance["experts"]
    assert record["experts"] == fingerprints
    assert record["start"] == front.provenance["start"]
    parts = {}
    for entry in (folder / "out" / "store" / "weights").iterdir():
        theta = open_weights(entry / "last.safetensors")
        parts[fingerprint(theta)] = theta
    assert len(weights) > 5
    for name in weights:
        expected = sum(
            share * np.asarray(parts[fingerprints[expert]][name], dtype=np.float64)
            for expert, share in record["coefficients"].items()
        )
        np.testing.assert_allclose(np.asarray(weights[name]), expected, rtol=1e-6, atol=1e-7)


def test_again_nothing_is_made_and_the_report_is_the_same(done):
    folder, content = done
    before = sorted(path.stat().st_mtime_ns for path in (folder / "out" / "store").rglob("*.json"))
    again = run(folder / "small.toml", folder / "out")
    after = sorted(path.stat().st_mtime_ns for path in (folder / "out" / "store").rglob("*.json"))
    assert again == content
    assert before == after
    assert read_json(folder / "out" / "job.json")["made_now"] == 0


def test_another_recipe_does_not_overwrite_it(done):
    folder, _ = done
    with pytest.raises(InputError, match="holds the finished results of another recipe"):
        run(folder / "small.toml", folder / "out", "front.points=4")


def test_another_front_takes_over_what_is_trained(done, tmp_path):
    folder, _ = done
    recipe, path = load_front_recipe(folder / "small.toml", ["front.points=5", "front.seeds=[0]"])
    content = run_front(recipe, recipe_path=path, out=tmp_path / "out", store=folder / "out" / "store")
    assert len(content["trials"][0]["fronts"][0]["rows"]) == 5
    made = read_json(tmp_path / "out" / "job.json")["made_now"]
    assert made == 2  # the ensembles of two further points


@pytest.mark.slow
def test_killed_at_any_stage_it_continues_with_the_same_numbers(done, tmp_path):
    folder, content = done
    code = (
        "import sys; from pathlib import Path; from mirepoix.fronts import load_front_recipe, run_front;"
        "recipe, path = load_front_recipe(sys.argv[1]);"
        "run_front(recipe, recipe_path=path, out=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder / "small.toml"), str(tmp_path / "out")]
    store, killed = tmp_path / "out" / "store", 0
    for wanted in (1, 3, 5, 9):  # finished results: in the start, an expert, MORL and the next trial
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(store.glob("*/*/record.json")) + list(store.glob("values/*.json"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    again = run(folder / "small.toml", tmp_path / "out")
    for trial, expected in zip(again["trials"], content["trials"], strict=True):
        for key in ("fronts", "connectivity", "volumes", "curves"):
            assert trial[key] == expected[key]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert 0 < read_json(tmp_path / "out" / "job.json")["made_now"] < 2 * (1 + 2 + 1 + 3)


def test_a_diverged_expert_is_left_out_and_told(done, tmp_path, monkeypatch):
    from mirepoix.rewards.control import PPOTrainer

    folder, _ = done
    real = PPOTrainer.fit

    def fit(self, theta, task, run, **options):
        if dict(self.reward) == {"risky": 1.0}:
            raise Diverged("the loss is not finite.", 3)
        return real(self, theta, task, run, **options)

    monkeypatch.setattr(PPOTrainer, "fit", fit)
    content = run(folder / "small.toml", tmp_path / "out", "front.seeds=[0]")
    assert content["experts"] == ["cautious"]
    assert content["choice"] is None
    assert any("risky diverged and is left out" in text for text in content["warnings"])
    write_report(content, tmp_path / "out")
    monkeypatch.setattr(
        PPOTrainer,
        "fit",
        lambda self, *args, **options: (
            real(self, *args, **options) if self.gather else (_ for _ in ()).throw(Diverged("x", 1))
        ),
    )
    with pytest.raises(InputError, match="seed 0: all experts diverged"):
        run(folder / "small.toml", tmp_path / "all", "front.seeds=[0]")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('front.experts=["risky", "fast"]', "there is no reward 'fast'; task.alphas has risky, cautious"),
        ("start.reward.fast=1.0", "no reward 'fast'"),
        ("evaluation.episodes=0", "evaluation.episodes: .*greater than or equal to 1.*got 0"),
    ],
)
def test_what_cannot_be_is_told_before_any_training(control, tmp_path, setting, message):
    (tmp_path / "small.toml").write_text(SMALL)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "small.toml", tmp_path / "out", setting)
    assert not list((tmp_path / "out").glob("store/weights/*/record.json"))


def test_threads_are_part_of_the_record(done):
    assert done[1]["environment"]["threads"] == 1
