import dataclasses

import pytest

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards import check_experts
from mirepoix.rewards.diffusion import DigitDiffusion, diffusion_expert
from mirepoix.rewards.diffusion._network import build_network
from mirepoix.types import InputError
from tests.rewards.diffusion import small


def test_an_expert_states_its_start_and_its_noise_schedule():
    expert = diffusion_expert(
        "mine", small.expert("boldness"), small.start(), reward="boldness", metrics={"a": 1}
    )
    assert (expert.name, expert.reward, expert.metrics) == ("mine", "boldness", {"a": 1})
    assert expert.start == fingerprint(small.start())
    assert list(expert.state) == ["noise schedule"]
    assert diffusion_expert("boldness", small.start(), small.start()).reward == "boldness"


def test_experts_of_one_start_and_schedule_are_accepted_others_refused():
    one, two = (diffusion_expert(name, small.expert(name), small.start()) for name in small.TASK.rewards)
    assert check_experts([one, two]).warnings == ()
    with pytest.raises(InputError, match="have different fixed states 'noise schedule'"):
        check_experts([one, dataclasses.replace(two, state={"noise schedule": "another"})])
    with pytest.raises(InputError, match="started from different weights"):
        check_experts([one, diffusion_expert("b", small.expert("boldness"), small.expert("legibility"))])


def test_another_architecture_is_refused():
    wide = build_network(DigitDiffusion(channels=(16, 16))).state_dict()
    with pytest.raises(InputError, match="expert 'wide': it was not fine-tuned from this start"):
        diffusion_expert("wide", wide, small.start())
