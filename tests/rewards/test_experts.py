import math

import numpy as np
import pytest
import torch

from mirepoix.checkpoints import fingerprint, open_weights, write_weights
from mirepoix.rewards import Expert, check_experts
from mirepoix.types import InputError

START = fingerprint({"w": np.zeros(3)})


def expert(name="a", value=1.0, **options):
    return Expert(
        **{"name": name, "reward": name, "weights": {"w": np.full(3, value)}, "start": START, **options}
    )


def test_experts_of_one_start_pass():
    found = check_experts([expert("a", 1.0), expert("b", 2.0)])
    assert found.start == START
    assert found.warnings == ()
    assert found.fingerprints == {
        "a": fingerprint({"w": np.full(3, 1.0)}),
        "b": fingerprint({"w": np.full(3, 2.0)}),
    }


def test_weights_may_be_lazy_or_of_torch(tmp_path):
    weights = {"w": torch.ones(3)}
    write_weights(tmp_path / "a.safetensors", weights)
    lazy = expert("a", weights=open_weights(tmp_path / "a.safetensors"))
    assert lazy.fingerprint == expert("b", weights=weights).fingerprint == fingerprint(weights)
    assert check_experts([lazy, expert("b", weights=weights)]).start == START


def test_one_expert_needs_no_start():
    assert check_experts([expert(start=None)]).warnings == ()


def test_starts_that_differ_are_refused_unless_forced():
    other = fingerprint({"w": np.ones(3)})
    experts = [expert("a"), expert("b", 2.0, start=other)]
    with pytest.raises(InputError, match=r"'a' and 'b' started from different weights.*force=True"):
        check_experts(experts)
    found = check_experts(experts, force=True)
    assert found.start is None
    assert "Experts 'a' and 'b' started from different weights" in found.warnings[0]


def test_an_unknown_start_is_refused_unless_forced():
    experts = [expert("a"), expert("b", 2.0, start=None)]
    with pytest.raises(InputError, match=r"not known from which weights 'b' started.*force=True"):
        check_experts(experts)
    found = check_experts(experts, force=True)
    assert found.start is None
    assert "'b' started, so it may not be connected" in found.warnings[0]


def test_an_expert_that_is_its_start_is_named():
    found = check_experts([expert("a", 0.0), expert("b")])
    assert found.warnings == ("Expert 'a' is its start: its training changed nothing.",)


def test_what_is_given_must_agree_and_what_is_not_may_be_missing():
    same = {"tokenizer": "bpe", "generation": {"max_tokens": 32}, "state": {"normaliser": "abc"}}
    assert not check_experts([expert("a", **same), expert("b", 2.0, **same)]).warnings
    loose = {"tokenizer": "bpe", "generation": {"max_tokens": 32}}
    assert not check_experts([expert("a", **loose), expert("b", 2.0)]).warnings


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"tokenizer": "x"}, {"tokenizer": "y"}, "different tokenizer: 'x' and 'y'"),
        ({"generation": {"top_k": 0}}, {"generation": {"top_k": 50}}, "different settings of generation"),
        ({"state": {"mean": 1}}, {"state": {"mean": 2}}, "different fixed states 'mean': 1 and 2"),
        ({"state": {"mean": 1}}, {}, "different fixed states 'mean': 1 and 'nothing'"),
        (
            {},
            {"weights": {"w": np.zeros(4)}},
            "member 0 is 'a', member 1 is 'b'.*has shape \\(3,\\) in member 0",
        ),
        ({}, {"weights": {"v": np.zeros(3)}}, "names differ"),
        ({}, {"name": "a"}, "each name once, got 'a' twice"),
    ],
)
def test_other_policies_cannot_be_forced_together(first, second, message, force):
    with pytest.raises(InputError, match=message):
        check_experts([expert("a", **first), expert(**{"name": "b", "value": 2.0, **second})], force=force)


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "experts: expected at least one name"), (expert(), "got a single Expert; put it in one")],
)
def test_a_list_of_experts_is_asked_for(given, message):
    with pytest.raises(InputError, match=message):
        check_experts(given)


def test_metrics_are_kept():
    assert expert(metrics={"reward": math.pi}).metrics == {"reward": math.pi}
