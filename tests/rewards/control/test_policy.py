import pytest
import torch

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.rewards.control import Locomotion, initial_policy
from mirepoix.types import InputError
from tests.rewards.control import small


def test_the_first_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = initial_policy(small.TASK, seed=3, hidden=(8, 12))
    torch.rand(1)
    assert small.same(first, initial_policy(small.TASK, seed=3, hidden=(8, 12)))
    assert not small.same(first, initial_policy(small.TASK, seed=4, hidden=(8, 12)))
    torch.set_rng_state(state)
    initial_policy(small.TASK)
    assert torch.equal(torch.get_rng_state(), state)


def test_sizes_are_those_of_the_task_and_of_the_layers():
    theta = initial_policy(small.TASK, hidden=(8, 12))
    assert theta["mlp_extractor.policy_net.0.weight"].shape == (8, 17)
    assert theta["mlp_extractor.value_net.2.weight"].shape == (12, 8)
    assert theta["action_net.weight"].shape == (6, 12)
    assert theta["log_std"].tolist() == [0] * 6
    assert initial_policy(Locomotion(environment="Hopper-v5"))["action_net.weight"].shape == (3, 64)


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_a_policy_without_hidden_layers_is_refused(hidden):
    with pytest.raises(InputError, match="hidden: expected the widths"):
        initial_policy(small.TASK, hidden=hidden)
