import dataclasses

import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards import check_experts
from mirepoix.rewards.scenes import scene_expert
from mirepoix.types import InputError
from tests.rewards.scenes import small


def expert(name, start=None, **options):
    start = small.start() if start is None else start
    return scene_expert(name, small.expert("right"), start, task=small.TASK, **options)


def test_an_expert_states_what_it_shares_with_others():
    made = expert("mine", reward="right", metrics={"seconds": 1})
    assert (made.name, made.reward, made.metrics) == ("mine", "right", {"seconds": 1})
    assert made.start == fingerprint(small.start())
    assert made.tokenizer == small.TASK.words
    assert made.generation == {"longest": 4, "decoding": "greedy"}
    assert check_experts([made, expert("right")]).warnings == ()


def test_experts_of_another_start_or_of_other_words_are_refused():
    with pytest.raises(InputError, match="started from different weights"):
        check_experts([expert("right"), expert("short", start=small.expert("short"))])
    other = dataclasses.replace(expert("short"), tokenizer="other words")
    with pytest.raises(InputError, match="have different tokenizer"):
        check_experts([expert("right"), other])


def test_an_expert_for_no_reward_is_refused():
    with pytest.raises(
        InputError, match="the task 'strokes' has no reward 'mine'; expected one of right, short"
    ):
        expert("mine")
