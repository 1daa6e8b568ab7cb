import math

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

import gymnasium
import mujoco

from mirepoix.rewards.control import Locomotion
from mirepoix.types import InputError


def steps_of(env, count=20):
    env.reset(seed=3)
    env.action_space.seed(5)
    for _ in range(count):
        action = env.action_space.sample()
        yield action, *env.step(action)


def test_a_reward_is_velocity_minus_the_price_of_the_action():
    task = Locomotion(alphas={"free": 0.0, "dear": 2.5})
    env = task.make([0.25, 3.0])
    for action, _, reward, _, _, info in steps_of(env):
        effort = math.fsum(float(a) ** 2 for a in action)
        free, dear = info["rewards"]
        assert free == info["x_velocity"]
        assert dear == pytest.approx(info["x_velocity"] - 2.5 * effort, rel=1e-12)
        assert reward == pytest.approx(0.25 * free + 3.0 * dear, rel=1e-12)
    env.close()


def test_the_cost_of_control_is_not_counted_twice():
    # HalfCheetah's own reward is velocity - 0.1 ||a||^2.
    mine = Locomotion(alphas={"own": 0.1}).make()
    bare = Locomotion().make().unwrapped
    for (_, _, reward, _, _, _), (_, _, own, _, _, _) in zip(steps_of(mine), steps_of(bare), strict=True):
        assert reward == pytest.approx(own, rel=1e-6)
    mine.close()
    bare.close()


def test_by_default_the_scalar_is_the_mean_of_the_rewards():
    env = Locomotion().make()
    for _, _, reward, _, _, info in steps_of(env, 3):
        assert reward == pytest.approx(np.mean(info["rewards"]))
    env.close()


def test_options_and_the_limit_reach_the_environment():
    env = Locomotion(episode_steps=7, options={"frame_skip": 2}).make()
    assert env.unwrapped.frame_skip == 2
    ends = [truncated for *_, truncated, _ in steps_of(env, 7)]
    assert ends == [False] * 6 + [True]
    env.close()


def test_an_environment_without_velocity_is_refused():
    env = Locomotion(environment="InvertedPendulum-v5").make()
    with pytest.raises(InputError, match=r"InvertedPendulum-v5' tells no 'x_velocity'.*reward_survive"):
        list(steps_of(env, 1))
    env.close()


def test_an_action_that_is_not_finite_does_not_reach_the_simulator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Locomotion().make()
    env.reset(seed=0)
    with pytest.raises(FloatingPointError, match="action is not finite"):
        env.step(np.full(6, np.nan, dtype=np.float32))
    assert not list(tmp_path.iterdir())  # MuJoCo would have written MUJOCO_LOG.TXT
    env.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alphas": {}}, "alphas: expected a reward or more"),
        ({"alphas": {"risky": -1.0}}, r"alphas\['risky'\]: expected a price of 0 or more, got -1.0"),
        ({"alphas": {"risky": math.inf}}, "got inf"),
        ({"episode_steps": 0}, "episode_steps: expected at least 1, got 0"),
    ],
)
def test_a_wrong_task_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Locomotion(**given)


@pytest.mark.parametrize(
    "given", [{"environment": "HalfDog-v5"}, {"options": {"no_such_option": 1}}], ids=["name", "option"]
)
def test_an_environment_that_cannot_be_made_is_refused(given):
    with pytest.raises(InputError, match=r"environment: .* cannot be made.*such as HalfCheetah-v5"):
        Locomotion(**given).make()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"rsky": 1.0}, "there is no reward 'rsky'; expected some of risky, cautious"),
        ({"risky": math.nan}, r"reward\['risky'\]: expected a finite coefficient, got nan"),
        ({}, "expected a coefficient that is not 0"),
        ({"risky": 0.0}, "expected a coefficient that is not 0"),
    ],
)
def test_a_wrong_scalar_reward_is_refused(reward, message):
    with pytest.raises(InputError, match=message):
        Locomotion().shares(reward)


def test_coefficients_are_used_as_given_in_the_order_of_the_task():
    assert Locomotion().shares({"cautious": 3.0}) == (0.0, 3.0)
    assert Locomotion().shares({"cautious": 0.5, "risky": 2.0}) == (2.0, 0.5)


def test_the_digest_names_the_content():
    digests = {
        Locomotion(**given).digest
        for given in (
            {},
            {"environment": "Hopper-v5"},
            {"alphas": {"risky": 0.0, "cautious": 2.0}},
            {"alphas": {"cautious": 1.0, "risky": 0.0}},
            {"options": {"frame_skip": 2}},
            {"episode_steps": 10},
        )
    }
    assert len(digests) == 6
    assert Locomotion().digest == Locomotion().digest


def test_mujoco_does_not_complain_of_its_own_models(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Locomotion().make().close()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())  # nor a log file


@pytest.mark.skipif(not hasattr(mujoco, "set_mju_user_warning"), reason="before MuJoCo 4")
def test_what_else_mujoco_says_is_passed_on(monkeypatch):
    heard = []
    real = gymnasium.make

    def make(*args, **options):
        handler = mujoco.get_mju_user_warning()
        handler("attribute 'x' is deprecated and will be removed in a future release")
        handler("the sky is falling")
        return real(*args, **options)

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.warns(UserWarning, match="MuJoCo: the sky is falling") as told:
        Locomotion().make().close()
    assert len(told) == 1
    mujoco.set_mju_user_warning(heard.append)
    try:
        Locomotion().make().close()
        assert mujoco.get_mju_user_warning() == heard.append
    finally:
        mujoco.set_mju_user_warning(None)
    assert heard == ["the sky is falling"]
