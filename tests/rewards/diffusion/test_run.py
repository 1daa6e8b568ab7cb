import json

import pytest

from mirepoix.rewards.diffusion import DiffusionRun
from mirepoix.types import InputError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("learning_rate", 0.0, "a positive number"),
        ("learning_rate", float("inf"), "a positive number"),
        ("clip", -5.0, "a positive number"),
        ("kept", 0.0, "a share above 0 and up to 1"),
        ("kept", 1.5, "a share above 0"),
        ("kept", 0.0005, "a share of 2 or more of 1024 images"),
        ("generated", 1, "at least 2"),
        ("trainable", "some", "'small' or 'all'"),
        ("sampling_steps", 0, "1 to 200"),
        ("sampling_steps", 201, "1 to 200"),
    ],
)
def test_a_wrong_run_is_refused(field, value, message):
    with pytest.raises(InputError, match=rf"run\.{field}: expected .*{message}.*, got {value!r}"):
        DiffusionRun(**{field: value})


def test_a_run_is_plain_values():
    run = DiffusionRun(steps=3, trainable="all")
    assert DiffusionRun(**json.loads(json.dumps(run.to_dict()))) == run
    assert run.with_(steps=200, trainable="small") == DiffusionRun()
