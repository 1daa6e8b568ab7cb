import json

import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.rewards.control import HALFCHEETAH, HUMANOID, initial_policy


@pytest.mark.parametrize("study", [HALFCHEETAH, HUMANOID], ids=["halfcheetah", "humanoid"])
def test_a_study_fits_together(study):
    assert study.task.rewards == ("risky", "cautious")
    assert list(study.task.alphas.values()) == [0.0, 1.0]
    study.task.shares(study.start_reward)
    for reward in study.morl:
        assert sum(study.task.shares(reward)) == pytest.approx(1)
    json.dumps([study.task.to_dict(), study.start.to_dict(), study.expert.to_dict()])
    theta = initial_policy(study.task, hidden=study.hidden)
    assert theta["action_net.weight"].shape[1] == study.hidden[-1]
    assert len(study.seeds) >= 6


def test_half_cheetah_begins_with_the_price_that_lets_it_walk():
    prices = HALFCHEETAH.task.alphas
    assert sum(share * prices[name] for name, share in HALFCHEETAH.start_reward.items()) == pytest.approx(0.1)


def test_humanoid_tells_its_velocity():
    env = HUMANOID.task.make()
    env.reset(seed=0)
    action = env.action_space.high
    *_, info = env.step(action)
    assert info["rewards"][0] - info["rewards"][1] == pytest.approx(17 * 0.4**2, rel=1e-5)
    env.close()
