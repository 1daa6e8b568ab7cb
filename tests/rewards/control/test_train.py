import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.control import Locomotion, PPORun, PPOTrainer, initial_policy
from mirepoix.store import Store, cached
from mirepoix.strategies import morl, rewarded_soup
from mirepoix.training import snapshots
from mirepoix.types import Diverged, InputError
from mirepoix.weights import interpolate
from tests.rewards.control import small

RISKY = PPOTrainer(reward={"risky": 1.0})


def begin():
    """Trainer, weights and run of a start."""
    trainer = PPOTrainer(reward=small.START_REWARD, gather=True)
    return trainer, initial_policy(small.TASK, hidden=(16, 16)), small.RUN


def tune():
    """Likewise of an expert."""
    return RISKY, small.start(), small.RUN.with_(seed=1)


def test_same_arguments_same_bits():
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert small.same(RISKY(small.start(), small.TASK, small.RUN.with_(seed=1)), small.expert("risky"))


def test_every_argument_counts():
    run = small.RUN.with_(seed=1, steps=256)
    found = {
        fingerprint(PPOTrainer(reward=reward)(small.start(), task, changed))
        for reward, task, changed in (
            ({"risky": 1.0}, small.TASK, run),
            ({"cautious": 1.0}, small.TASK, run),
            ({"risky": 1.0}, dataclasses.replace(small.TASK, episode_steps=40), run),
            *(
                ({"risky": 1.0}, small.TASK, run.with_(**change))
                for change in (
                    {"seed": 2},
                    {"learning_rate": 2e-3},
                    {"environments": 4, "rollout_steps": 32},
                    {"batch_size": 64},
                    {"epochs": 3},
                    {"gamma": 0.9},
                    {"gae_lambda": 0.9},
                    {"clip_range": 0.01},
                    {"entropy_coefficient": 0.1},
                    {"value_coefficient": 0.1},
                    {"max_gradient_norm": 0.01},
                    {"checkpoint_every": 1},
                )
            ),
        )
    }
    assert len(found) == 15


def test_what_is_global_is_afterwards_what_it_was():
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    RISKY(small.start(), small.TASK, small.RUN.with_(steps=128))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.get_num_threads() == threads


def test_the_start_is_not_changed():
    theta = {name: x.clone() for name, x in small.start().items()}
    moved = RISKY(theta, small.TASK, small.RUN)
    assert small.same(theta, small.start())
    assert not torch.equal(moved["action_net.weight"], theta["action_net.weight"])


def test_the_start_gathers_the_statistics_of_what_it_saw():
    seen = []

    class Watched(Locomotion):
        def make(self, shares=None, normaliser=None):
            env = super().make(shares, normaliser)
            reset, step = env.reset, env.step

            def watched_reset(**options):
                result = reset(**options)
                seen.append(result[0])
                return result

            def watched_step(action):
                result = step(action)
                if not (result[2] or result[3]):  # the observation after the reset counts instead
                    seen.append(result[0])
                return result

            env.reset, env.step = watched_reset, watched_step
            return env

    trainer, theta, run = begin()
    found = trainer(theta, Watched(episode_steps=50), run)
    np.testing.assert_allclose(found["normaliser.mean"], np.mean(seen, axis=0), atol=1e-4)
    np.testing.assert_allclose(found["normaliser.variance"], np.var(seen, axis=0), rtol=1e-3)


def test_experts_keep_the_statistics_of_the_start_bit_for_bit():
    for name in ("normaliser.mean", "normaliser.variance", "normaliser.return_variance"):
        assert torch.equal(small.expert("risky")[name], small.start()[name])
        assert torch.equal(small.expert("cautious")[name], small.start()[name])


def test_the_reward_is_scaled_as_it_was_in_the_start():
    # Twice the reward with four times the variance of the return is the same training.
    theta = dict(small.start())
    theta["normaliser.return_variance"] = 4 * theta["normaliser.return_variance"]
    doubled = PPOTrainer(reward={"risky": 2.0})(theta, small.TASK, small.RUN.with_(seed=1))
    own = "mlp_extractor.policy_net.0.weight"
    torch.testing.assert_close(doubled[own], small.expert("risky")[own], rtol=0, atol=1e-4)
    halved = RISKY(theta, small.TASK, small.RUN.with_(seed=1))
    assert not torch.allclose(
        halved["value_net.weight"], small.expert("risky")["value_net.weight"], atol=1e-4
    )


def test_morl_with_one_coefficient_is_the_expert():
    morl = PPOTrainer(reward={"cautious": 0.0, "risky": 1.0})
    assert morl.made_of() == RISKY.made_of()
    assert small.same(morl(small.start(), small.TASK, small.RUN.with_(seed=1)), small.expert("risky"))


def test_the_page_of_equations_takes_it():
    trains = {name: PPOTrainer(reward={name: 1.0}) for name in ("risky", "cautious")}
    run = small.RUN.with_(seed=1)
    shares = [{"risky": 0.3, "cautious": 0.7}]
    (soup,) = rewarded_soup(trains, small.start(), small.TASK, run, shares)
    assert small.same(soup, interpolate([small.expert("risky"), small.expert("cautious")], [0.3, 0.7]))
    alone, even = morl(
        lambda weights: PPOTrainer(reward=weights),
        small.start(),
        small.TASK,
        run,
        [{"risky": 1.0, "cautious": 0.0}, {"risky": 0.5, "cautious": 0.5}],
    )
    assert small.same(alone, small.expert("risky"))
    assert not small.same(even, soup)


def test_a_reward_raises_itself():
    # The price of actions is felt at once: the cautious expert pays less of it than the other.
    def last(name):
        run = small.RUN.with_(steps=4096, seed=1)
        return (
            PPOTrainer(reward={name: 1.0}).fit(small.start(), small.TASK, run).record["checks"][-1]["rewards"]
        )

    risky, cautious = last("risky"), last("cautious")
    assert cautious["risky"] - cautious["cautious"] < risky["risky"] - risky["cautious"]


def test_snapshots_are_the_weights_after_each_stretch():
    trainer, theta, run = tune()
    fit = trainer.fit(theta, small.TASK, run)
    kept = snapshots(fit.weights["snapshots"])
    assert list(kept) == [256, 512, 640]
    assert small.same(kept[640], fit.weights["last"])
    assert not small.same(kept[512], kept[256])
    assert [check["step"] for check in fit.record["checks"]] == [256, 512, 640]
    assert fit.record["steps"] == 640
    only = dataclasses.replace(trainer, keep=("last",)).fit(theta, small.TASK, run)
    assert set(only.weights) == {"last"}
    assert small.same(only.weights["last"], fit.weights["last"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("beginning", [begin, tune], ids=["start", "expert"])
@pytest.mark.parametrize("stretches", [1, 2])
def test_an_interrupted_training_continues_with_the_same_bits(beginning, stretches, tmp_path):
    trainer, theta, run = beginning()
    whole = trainer.fit(theta, small.TASK, run)
    steps = []

    def kill(done, of, rewards):
        steps.append((done, of))
        if len(steps) == stretches:
            raise Killed

    killed = dataclasses.replace(trainer, on_progress=kill)
    with pytest.raises(Killed):
        killed.fit(theta, small.TASK, run, workspace=tmp_path / "work")
    again = killed.fit(theta, small.TASK, run, workspace=tmp_path / "work")
    assert steps == [(256, 640), (512, 640), (640, 640)]  # nothing was done twice
    assert small.same(again.weights["last"], whole.weights["last"])
    assert small.same(again.weights["snapshots"], whole.weights["snapshots"])
    assert again.record["checks"] == whole.record["checks"]


def test_the_state_of_another_run_is_refused(tmp_path):
    trainer, theta, run = tune()
    trainer.fit(theta, small.TASK, run.with_(steps=128), workspace=tmp_path)
    with pytest.raises(
        InputError, match=r"state\.bin: expected the state of this run, got that of another one"
    ):
        trainer.fit(theta, small.TASK, run, workspace=tmp_path)


def test_a_damaged_state_is_begun_again(tmp_path, caplog):
    trainer, theta, run = tune()
    (tmp_path / "state.bin").write_bytes(b"nonsense")
    found = trainer.fit(theta, small.TASK, run, workspace=tmp_path)
    assert "damaged" in caplog.text
    assert small.same(found.weights["last"], small.expert("risky"))


KILLED = """
import dataclasses, sys, time
from mirepoix.store import Store, cached
from tests.rewards.control.test_train import begin, small
trainer, theta, run = begin()

def tell(done, steps, rewards):
    print(done, flush=True)
    time.sleep(600 * (done == 768))

slow = dataclasses.replace(trainer, on_progress=tell)
cached(slow, Store(sys.argv[1]))(theta, small.TASK, run.with_(steps=1280))
"""


def test_a_training_killed_in_a_store_continues_there(tmp_path, root):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (state,) = tmp_path.rglob("state.bin")
    assert not list(tmp_path.rglob("record.json"))

    trainer, theta, run = begin()
    seen = []
    noted = dataclasses.replace(trainer, on_progress=lambda *done: seen.append(done[0]))
    run = run.with_(steps=1280)
    store = Store(tmp_path)
    found = cached(noted, store)(theta, small.TASK, run)
    assert seen == [1024, 1280]
    assert small.same(found, trainer(theta, small.TASK, run))
    assert not state.exists()
    assert len(store.made) == 1
    assert json.loads((state.parent / "record.json").read_text())["made_of"]["train"]["name"] == "ppo"
    started = time.monotonic()
    assert small.same(cached(noted, store)(theta, small.TASK, run), found)
    assert len(store.made) == 1
    assert time.monotonic() - started < 1


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_training_that_diverges_says_so():
    with pytest.raises(Diverged, match=r"diverged after [0-9,]+ steps: .* not finite.*learning_rate") as told:
        RISKY(small.start(), small.TASK, small.RUN.with_(learning_rate=1e8))
    assert told.value.step >= 128


def test_episodes_that_end_early_are_no_trouble():
    task = Locomotion(environment="Hopper-v5", episode_steps=30)
    theta = initial_policy(task, hidden=(8,))
    start = PPOTrainer(reward={"risky": 1.0}, gather=True)(theta, task, small.RUN)
    assert start["normaliser.mean"].shape == (11,)
    assert torch.isfinite(RISKY(start, task, small.RUN)["log_std"]).all()


def test_statistics_are_gathered_once_and_not_forgotten():
    _, bare, run = begin()
    with pytest.raises(
        InputError, match=r"'normaliser.mean' is not there\. Train the start with .*gather=True"
    ):
        RISKY(bare, small.TASK, run)
    with pytest.raises(InputError, match="gather: expected a start without observation statistics"):
        PPOTrainer(reward={"risky": 1.0}, gather=True)(small.start(), small.TASK, run)


def test_weights_of_another_environment_are_refused():
    with pytest.raises(InputError, match="statistics are of 17 observations"):
        RISKY(small.start(), Locomotion(environment="Hopper-v5"), small.RUN)
    theta = {**small.start(), "extra": torch.zeros(2)}
    with pytest.raises(InputError, match=r"'extra' has shape \(2,\), expected nothing"):
        RISKY(theta, small.TASK, small.RUN)
    theta = {**small.start(), "log_std": torch.zeros(2)}
    with pytest.raises(InputError, match=r"'log_std' has shape \(2,\), expected \(6,\)"):
        RISKY(theta, small.TASK, small.RUN)


def test_a_wrong_trainer_is_refused():
    with pytest.raises(InputError, match="there is no reward 'fast'"):
        PPOTrainer(reward={"fast": 1.0})(small.start(), small.TASK, small.RUN)
    with pytest.raises(InputError, match="keep: expected some of last, snapshots, got 'best'"):
        PPOTrainer(reward={"risky": 1.0}, keep=("best",))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "at least 1"),
        ("environments", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("learning_rate", 0.0, "a positive number"),
        ("clip_range", -0.1, "a positive number"),
        ("gamma", 1.5, r"a number in \[0, 1\]"),
        ("value_coefficient", -1.0, "0 or more"),
        ("batch_size", 100, "2 or more, a divisor of the 2048 steps"),
        ("batch_size", 1, "2 or more"),
        ("collect", "best", "'last' or 'snapshots'"),
    ],
)
def test_a_wrong_run_is_refused(field, value, message):
    with pytest.raises(InputError, match=rf"run\.{field}: expected .*{message}.*, got {value!r}"):
        PPORun(**{field: value})


def test_a_run_is_plain_values_and_counts_whole_rollouts():
    run = PPORun(steps=100_000)
    assert (run.rollout_size, run.rollouts) == (2048, 49)
    assert PPORun(**json.loads(json.dumps(run.to_dict()))) == run
    json.dumps(RISKY.made_of())
