import dataclasses
import inspect
from collections import Counter

import pytest
import torch
from tests.tiny import tiny_network

from mirepoix import objectives
from mirepoix.models import NetworkSpec
from mirepoix.objectives import CORAL, ERM, NOT_IN_RECIPES, OBJECTIVES, Objective, objective
from mirepoix.objectives._named import (
    BEGIN_OPTIONS,
    check_named,
    label_of,
    model_facts,
    never_begins,
    option_names,
)
from mirepoix.training import Trainer
from mirepoix.types import Batch, InputError

FACTS = {"features": 16, "classes": 3, "domains": 2, "channels": 1}
"""Of the network below."""

CLASSES = [getattr(objectives, name) for name in objectives.__all__]
CRITERIA = {
    each
    for each in CLASSES
    if isinstance(each, type) and issubclass(each, Objective) and each is not Objective
}


def network():
    return NetworkSpec(name="mnist_cnn", width=8, classes=3, channels=1).build()


def batches():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(6) % 3
    return [Batch(torch.randn(6, 1, 8, 8, generator=random), labels, torch.zeros(6).long()) for _ in range(2)]


def test_every_public_criterion_has_one_name():
    names = Counter(OBJECTIVES.values())
    assert names == dict.fromkeys(CRITERIA, 1)


def test_names_are_those_of_public_classes():
    assert all(issubclass(OBJECTIVES[name], Objective) for name in OBJECTIVES)
    assert len(set(OBJECTIVES.values())) == len(OBJECTIVES) == len(list(OBJECTIVES))
    assert "erm" in OBJECTIVES
    assert "ERM" not in OBJECTIVES
    assert {name: label_of(name) for name in OBJECTIVES} == {
        name: criterion.__name__ for name, criterion in OBJECTIVES.items()
    }


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_IN_RECIPES])
def test_each_is_made_from_what_can_be_known_and_makes_an_update(name):
    model = network()
    made = objective(name, featurizer=model.featurizer, **FACTS)
    assert type(made) is OBJECTIVES[name]
    parameters = [*model.parameters(), *made.trained_with_network()]
    before = model.classifier.weight.detach().clone()
    torch.default_generator.manual_seed(0)
    logged = [made.step(model, batches(), torch.optim.Adam(parameters, 1e-3))["loss"] for _ in range(2)]
    assert all(loss.isfinite() for loss in logged)
    assert not torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "sam"])  # predicts as what it wraps
def test_what_changes_predictions_is_in_no_recipe_and_the_rest_is(name):
    own = OBJECTIVES[name].predict is not Objective.predict
    assert own == (name in NOT_IN_RECIPES)
    if own:
        with pytest.raises(InputError, match=rf"objective.name: no recipe can name '{name}': .*In Python"):
            check_named(name, {})
        assert type(objective(name, **FACTS)) is OBJECTIVES[name]  # in Python it is there
    else:
        check_named(name, {})


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_facts_and_options_are_the_whole_constructor(name):
    constructor = list(inspect.signature(OBJECTIVES[name].__init__).parameters)[1:]
    assert sorted([*model_facts(name), *option_names(name)]) == sorted(constructor)
    assert set(model_facts(name)) <= {*FACTS, "featurizer"}


def test_options_reach_the_constructor():
    made = objective("fishr", domains=3, lambda_=5.0, layers=["classifier"])
    assert made.configuration()["lambda_"] == 5.0
    assert made.configuration()["domains"] == 3
    assert made.configuration()["layers"] == ["classifier"]


def test_a_criterion_takes_only_the_facts_it_knows():
    assert isinstance(objective("erm", features=3, classes=2, domains=4, channels=1), ERM)
    assert objective("cad").configuration()["features"] is None  # it may know them, and need not
    assert objective("cad", features=9).configuration()["features"] == 9


def test_a_fact_that_is_missing_is_asked_for():
    with pytest.raises(InputError, match="fishr must know the number of source domains; give domains="):
        objective("fishr", features=3)


def test_a_second_featurizer_is_a_copy_of_what_is_given():
    model = network()
    for given in (model.featurizer, lambda: model.featurizer):
        made = objective("adrmx", featurizer=given, **FACTS)
        values = {id(value) for value in model.parameters()}
        assert not values & {id(value) for value in made.parameters()}
        theta = model.featurizer.state_dict()
        assert all(torch.equal(value, theta[key]) for key, value in made.featurizer.state_dict().items())


def test_sam_wraps_a_name_or_a_table():
    assert type(objective("sam").objective) is ERM
    assert type(objective("sam", objective="coral").objective) is CORAL
    made = objective("sam", domains=3, rho=0.1, objective={"name": "group_dro", "groupdro_eta": 0.5})
    assert made.configuration()["objective"]["groupdro_eta"] == 0.5
    assert made.rho == 0.1
    assert objective("sam", objective=CORAL(mmd_gamma=3.0)).objective.mmd_gamma == 3.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fisher",
            {},
            r"objective.name: there is no objective 'fisher' \(did you mean 'fishr'\?\); known: erm,",
        ),
        ("zzz", {}, r"objective.name: there is no objective 'zzz'; known: "),
        ("ERM", {}, r"did you mean 'erm'\?"),
        ("fishr", {"lamda": 1}, r"objective.lamda: fishr has no such option \(did you mean 'lambda_'\?\)"),
        ("fishr", {"zzz": 1}, "objective.zzz: .*; its options are lambda_, penalty_anneal_iters, ema, "),
        ("erm", {"rho": 1}, "objective.rho: erm has no such option; it takes none"),
        ("fishr", {"lambda_": "1"}, "objective.lambda_: expected a number, got '1'"),
        ("fishr", {"lambda_": True}, "objective.lambda_: expected a number, got True"),
        (
            "fishr",
            {"penalty_anneal_iters": 1.5},
            "objective.penalty_anneal_iters: expected a whole number, got 1.5",
        ),
        ("cad", {"is_flipped": "no"}, "objective.is_flipped: expected true or false, got 'no'"),
        ("irm", {"irm_estimate": "x"}, "objective.irm_estimate: expected 'product' or 'square', got 'x'"),
        ("fishr", {"lambda_": -1.0}, "objective: Fishr needs a finite lambda_ of 0 or more, got -1"),
        (
            "fishr",
            {"domains": 3},
            "objective.domains: the number of source domains comes from .*leave it out",
        ),
        (
            "sam",
            {"objective": ["coral"]},
            r"objective.objective: expected the name of an objective, a table .*, got \['coral'\]",
        ),
        ("fishr", {"layers": 3}, "objective.layers: expected a text or a list of texts, got 3"),
        ("dann", {"seed": 2**64}, f"objective.seed: expected a whole number of 64 bits, got {2**64}"),
        ("sam", {"objective": "fish"}, "objective: SAM cannot wrap Fish"),
        ("sam", {"objective": "urm"}, "objective.objective.name: no recipe can name 'urm'"),
        ("sam", {"objective": {"nme": "erm"}}, "objective.objective: expected the name of an objective"),
        ("sam", {"objective": {"name": "sd", "x": 1}}, "objective.objective.x: sd has no such option"),
        (
            "sam",
            {"objective": {"name": "coral", "mmd_gama": 1.0}},
            r"objective.objective.mmd_gama: coral has no such option \(did you mean 'mmd_gamma'\?\)",
        ),
        (
            "sam",
            {"objective": {"name": "coral", "mmd_gamma": -1.0}},
            "objective.objective: CORAL needs .*mmd_gamma",
        ),
        (
            "sam",
            {"objective": {"name": "group_dro", "domains": 3}},
            "objective.objective.domains: the number of source domains comes from .*leave it out",
        ),
        ("sam", {"objective": "corall"}, "objective.objective.name: there is no .*did you mean 'coral'"),
    ],
)
def test_a_mistake_names_the_key_what_was_expected_and_what_came(name, options, message):
    with pytest.raises(InputError, match=message):
        check_named(name, options)


def test_a_recipe_is_told_the_names_that_it_can_use():
    with pytest.raises(InputError) as told:
        check_named("zzz", {})
    known = str(told.value).partition("known: ")[2].removesuffix(".").split(", ")
    assert known == [name for name in OBJECTIVES if name not in NOT_IN_RECIPES]
    with pytest.raises(InputError, match="known: erm, ") as told:
        objective("zzz")
    assert str(told.value).partition("known: ")[2].removesuffix(".").split(", ") == list(OBJECTIVES)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_IN_RECIPES])
def test_the_options_that_say_when_a_criterion_begins_are_those(name):
    options = dict.fromkeys(BEGIN_OPTIONS.get(name, ()), 7)
    begins = check_named(name, options).begins()
    assert begins == {"erm_plus_plus": 8}.get(name, 7 if options else 0)
    assert never_begins(name, options, begins + 1, "objective") is None
    if not options:
        return
    said = never_begins(name, options, 5, "objective")
    keys = " and ".join(f"objective.{option}" for option in options)
    assert said.startswith(f"{name} begins at update {begins}, and a run has 5 steps, so it would never be")
    assert said.endswith(f"; set {keys} below {7 - begins + 5}")
    smaller = dict.fromkeys(options, 7 - begins + 4)
    assert never_begins(name, smaller, 5, "objective") is None  # as told


def test_of_two_penalties_the_one_that_begins_too_late_is_named():
    options = {"irm_penalty_anneal_iters": 3, "ib_penalty_anneal_iters": 60}
    said = never_begins("ib_irm", options, 60, "objective_options.ib_irm", "a run on digits")
    assert "begins at update 60, and a run on digits has 60 steps" in said
    assert said.endswith("set objective_options.ib_irm.ib_penalty_anneal_iters below 60")


def test_by_name_or_by_class_a_training_is_the_same():
    for name, made in (("erm", ERM()), ("coral", CORAL()), ("sam", objectives.SAM())):
        by_class = Trainer(tiny_network(), objective=made)
        by_name = dataclasses.replace(by_class, objective=objective(name))
        assert by_name.made_of() == by_class.made_of()
    assert by_name.made_of() != Trainer(tiny_network()).made_of()


def test_the_risk_has_the_identity_that_it_always_had():
    made_of = Trainer(tiny_network(), objective=objective("erm")).made_of()
    assert set(made_of["objective"]) == {"name", "state"}
    assert made_of["objective"]["name"] == "mirepoix.objectives._erm.ERM"
