"""Criteria of members trained together, by the name that a recipe has for them."""

import pytest

from mirepoix import ensembles
from mirepoix.ensembles import JointObjective
from mirepoix.ensembles._named import JOINT, check_joint, joint_objective, mixes_inputs
from mirepoix.types import InputError

FACTS = {"features": 8, "classes": 5, "members": 3, "total_steps": 40, "seed": 7}


def test_every_criterion_has_a_name():
    public = [getattr(ensembles, name) for name in ensembles.__all__]
    joint = {kind for kind in public if isinstance(kind, type) and issubclass(kind, JointObjective)}
    assert set(JOINT.values()) == joint - {JointObjective, ensembles.MixMo}


@pytest.mark.parametrize("name", JOINT)
def test_each_is_told_what_it_asks_for(name):
    made = joint_objective(name, {}, **FACTS)
    assert type(made) is JOINT[name]
    told = made.configuration()
    for fact, value in FACTS.items():
        assert told.get(fact, value) == value
    check_joint(name, {}, 3, 40)


def test_options_reach_the_constructor_and_a_seed_may_be_one():
    made = joint_objective("dice", {"delta": 0.3, "hidden": [8, 8], "seed": 1}, **FACTS)
    told = made.configuration()
    assert (told["delta"], told["hidden"], told["seed"]) == (0.3, [8, 8], 1)


def test_which_of_them_mix_inputs():
    assert {name for name in JOINT if mixes_inputs(name)} == {"mimo", "linear_mixmo", "cut_mixmo"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cut-mixmo", {}, r"objective.name: expected .*got 'cut-mixmo' \(did you mean 'cut_mixmo'\?\)"),
        ("erm", {}, r"objective.name: expected .*got 'erm'; known: independent, one"),
        ("dice", {"delt": 1}, r"objective.delt: dice has no such option \(did you mean 'delta'\?\)"),
        ("dice", {"delta": "x"}, r"objective.delta: expected .*number.*, got 'x'"),
        ("dice", {"ramp_steps": 0.5}, r"objective.ramp_steps: expected a whole number, got 0.5"),
        ("dice", {"classes": 3}, r"objective.classes: the number of classes is known from elsewhere"),
        ("cut_mixmo", {"total_steps": 3}, r"objective.total_steps: the number of updates is known"),
        ("independent", {"delta": 1}, r"objective.delta: independent has no such option; it takes none"),
        ("one", {"combiner": "gate"}, r"objective.combiner: predictions are compared by one rule"),
        ("okddip", {"leader": True}, r"objective.leader: the leader is no member"),
        ("ceb", {"beta": 0}, r"CEB needs a positive beta"),
    ],
)
def test_a_mistake_names_the_key(name, options, message):
    with pytest.raises(InputError, match=message):
        check_joint(name, options, 3, 40)
