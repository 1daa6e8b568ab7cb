import pytest

from mirepoix.rewards.text import TextTask, as_reward, length_target
from mirepoix.types import InputError

SHORT = length_target(name="short")
LONG = length_target(20, name="long")


def test_shares_are_in_the_order_of_the_rewards():
    task = TextTask(["a", "b"], [SHORT, LONG])
    assert task.names == ("short", "long")
    assert task.shares({"long": 2}) == (0.0, 2.0)
    with pytest.raises(InputError, match="expected some of short, long, got 'funny'"):
        task.shares({"funny": 1})
    with pytest.raises(InputError, match="other than 0"):
        task.shares({"long": 0})
    with pytest.raises(InputError, match="expected a finite number for 'long', got nan"):
        task.shares({"long": float("nan")})


def test_the_digest_names_prompts_columns_and_rewards():
    digests = {
        TextTask(["a", "b"], [SHORT]).digest,
        TextTask(["a", "c"], [SHORT]).digest,
        TextTask(["a", "b"], [LONG]).digest,
        TextTask(["a", "b"], [SHORT], {"reference": ["x", "y"]}).digest,
    }
    assert len(digests) == 4
    assert TextTask(["a", "b"], [SHORT]).digest in digests


def test_what_is_no_task_is_refused():
    with pytest.raises(InputError, match="expected at least one"):
        TextTask([], [SHORT])
    with pytest.raises(InputError, match="expected a list of texts"):
        TextTask("a b", [SHORT])
    with pytest.raises(InputError, match="expected a list of texts, got 3"):
        TextTask(["a", 3], [SHORT])
    with pytest.raises(InputError, match="'short' twice"):
        TextTask(["a"], [SHORT, SHORT])
    with pytest.raises(InputError, match="see as_reward"):
        TextTask(["a"], [lambda prompts, completions: [0.0]])
    with pytest.raises(InputError, match="expected 1 values in 'reference'"):
        TextTask(["a"], [SHORT], {"reference": ["x", "y"]})
    with pytest.raises(InputError, match="'completions' has a meaning of its own"):
        TextTask(["a"], [as_reward(lambda **k: [0.0], "zero")], {"completions": ["x"]})
