import re

import pytest

from mirepoix.comparison import load_comparison
from mirepoix.recipe import builtin_recipes, load_recipe
from mirepoix.runs import Run
from mirepoix.types import InputError
from tests.comparison.conftest import RECIPE, recipe_of

COMPARISONS = [name for name, path in builtin_recipes().items() if "[[systems]]" in path.read_text()]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_there_are_recipes_that_come_along():
    assert {"cifar10-star", "cifar10-dice", "cifar10-mixmo"} <= set(COMPARISONS)


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_recipes_that_come_along_are_valid_and_named_as_their_files(name, root):
    recipe, path = load_comparison(name)
    assert recipe.name == name
    assert path == root / "recipes" / f"{name}.toml"
    text = path.read_text()
    assert any(line.startswith("# Command:") for line in text.splitlines()[:12])
    assert not re.search(r"[A-Z]{3,}(TIME|EXPECT)", text), "a number is still missing"


def test_a_recipe_survives_being_written_and_read(file):
    recipe, _ = load_comparison(file)
    again = type(recipe).model_validate(recipe.model_dump(mode="json", exclude_unset=True))
    assert again.model_dump() == recipe.model_dump()


def test_every_system_has_its_own_runs(file):
    recipe, _ = load_comparison(file)
    systems = {system.name: system for system in recipe.systems}
    base = Run(steps=6, batch_size=4, learning_rate=3e-3, schedule="cosine", check_every=3, collect="last")
    assert recipe.run_of(systems["SSE"]) == base
    cycle = base.with_(steps=4, learning_rate=5e-3)
    assert recipe.cycle_of(systems["SSE"]) == cycle
    assert recipe.cycle_of(systems["StarSSE PEFT (1)"]) == cycle.with_(train_from="conv4")
    assert recipe.probe_run() is None


def test_a_system_changes_its_phases_one_after_the_other():
    recipe = recipe_of(
        {"name": "a", "kind": "star", "run": {"steps": 9, "dropout": 0.1}, "cycle": {"dropout": 0.2}},
        cycle={"steps": 2},
    )
    (system,) = recipe.systems
    assert (recipe.run_of(system).steps, recipe.run_of(system).dropout) == (9, 0.1)
    assert (recipe.cycle_of(system).steps, recipe.cycle_of(system).dropout) == (2, 0.2)


def test_names_of_systems_are_keys_of_changes(file):
    recipe, _ = load_comparison(file, ["systems.DICE.objective.delta=0.3", "systems.SSE.members=2"])
    systems = {system.name: system for system in recipe.systems}
    assert systems["DICE"].objective.options == {"delta": 0.3}
    assert recipe.members_of(systems["SSE"]) == 2
    assert recipe.members_of(systems["MIMO"]) == 2
    assert recipe.members_of(systems["StarSSE"]) == 3
    recipe, _ = load_comparison(file, ["systems.DICE.objective=ceb"])
    assert next(s for s in recipe.systems if s.name == "DICE").objective.options == {}


def test_the_baseline_is_the_first_system_unless_named(file):
    assert load_comparison(file)[0].compared_with == "Local DE"
    assert load_comparison(file, ["baseline=StarSSE soup"])[0].compared_with == "StarSSE soup"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("systems.SSE.kind=snap", r"systems.SSE.kind: .*'deep_ensemble', 'snapshot', .*got 'snap'"),
        ("systems.SSE.membres=2", r"systems.SSE.membres: unknown key \(did you mean 'members'\?\)"),
        ("systems.SSE.members=0", r"systems.SSE.members: .*greater than or equal to 1, got 0"),
        ("systems.SSE.members=1", r"systems.SSE.members: expected at least 2 members of the kind 'snapshot'"),
        ("systems.DICE.members=1", r"systems.DICE.members: expected at least 2 members of the kind 'joint'"),
        ("systems.SSE.name=StarSSE", r"systems: expected different names, got 'StarSSE' twice"),
        ("systems.SSE.name=StarSSE soup", r"systems: expected different names, got 'StarSSE soup' twice"),
        ("systems.SSE.name=..", r"systems.name: expected a letter or a digit in it, .*got '\.\.'"),
        ("systems.Local DE.cycle={}", r"systems.Local DE.cycle: not of a system of the kind 'deep_ensemble'"),
        (
            "systems.Local DE.later=mse",
            r"systems.Local DE.later: not of a system .* make the kind one of snapshot, star",
        ),
        ("systems.DICE.soup=true", r"systems.DICE.soup: not of a system of the kind 'joint'"),
        ("systems.SSE.copies=2", r"systems.SSE.copies: not of .*set members instead"),
        ("systems.MIMO.members=2", r"systems.MIMO.members: not beside inputs"),
        ("systems.MIMO.split_at=conv4", r"systems.MIMO.split_at: not beside inputs"),
        ("systems.MIMO.objective=dice", r"systems.MIMO.objective: expected one that mixes inputs, .*'dice'"),
        ("systems.DICE.objective=cut_mixmo", r"systems.DICE.objective: cut_mixmo mixes the inputs"),
        (
            "systems.DICE.objective=dise",
            r"systems.DICE.objective.name: .*got 'dise' \(did you mean 'dice'\?\)",
        ),
        (
            "systems.DICE.objective.detla=1",
            r"systems.DICE.objective.detla: dice has no such option \(did you",
        ),
        ("systems.DICE.objective.delta=x", r"systems.DICE.objective.delta: expected .*number, got 'x'"),
        ("systems.DICE.objective.tau=0", r"systems.DICE.objective: DICE needs tau to be positive"),
        ("systems.DICE.objective.members=3", r"systems.DICE.objective.members: .* leave it out"),
        (
            "systems.SSE.objective=mixupp",
            r"systems.SSE.objective.name: .*'mixupp' \(did you mean 'mixup'\?\)",
        ),
        ("systems.SSE.objective=fishr", r"systems.SSE.objective: fishr begins at update 1500"),
        (
            "systems.SSE.later=rdt",
            r"systems.SSE.later.name: .*'rdt' \(did you mean 'rtd'\?\); known: rtd, mse",
        ),
        ("systems.SSE.later=l2_sp", r"systems.SSE.later.alpha: missing; l2_sp has no default for it"),
        ("systems.SSE.later={name='mse',alpha='x'}", r"systems.SSE.later.alpha: expected a number, got 'x'"),
        ("systems.SSE.later={name='mse',alpha=-1.0}", r"systems.SSE.later: MSEPenalty needs alpha"),
        ("systems.SSE.later={name='mse',layers={a=1.0}}", r"systems.SSE.later: MSEPenalty: layers .*got 'a'"),
        (
            "systems.SSE.later={name='ewc',alpha=1.0,images=0}",
            r"systems.SSE.later.images: .*1 or more, got 0",
        ),
        ("systems.SSE.later={name='ewc',alpha=1.0,fisher={}}", r"systems.SSE.later.fisher: .*leave it out"),
        ("systems.SSE.sampling={rank=2}", r"systems.SSE.sampling: not of a system .*trained, not drawn"),
        ("systems.SSE.kind=swag", None),
        ("systems.SSE.later=mse", None),
        ("systems.Local DE.starts=[]", r"systems.Local DE.starts: .*at least 1 item"),
        ("systems.MIMO.starts=['a.th']", r"systems.MIMO.starts: not of a system of the kind 'joint'"),
        ("systems.SSE.run.stpes=3", r"systems.SSE.run.stpes: unknown key \(did you mean 'steps'\?\)"),
        ("systems.SSE.run.learning_rate=-1.0", r"systems.SSE.run.learning_rate: expected a positive number"),
        ("systems.SSE.cycle.learning_rate=-1.0", r"systems.SSE.cycle.learning_rate: expected a positive"),
        ("cycle.learning_rate=-1.0", r"cycle.learning_rate: expected a positive number, got -1.0"),
        ("cycle.stesp=3", r"cycle.stesp: unknown key \(did you mean 'steps'\?\)"),
        ("data.targets=all", r"data.targets: .*list, got 'all'"),
        ("data.targets=['a','b']", r"data.targets: .*at most 1 item"),
        ("data.seeds=[0, 0]", r"data.seeds: expected each entry once"),
        ("baseline=SEE", r"baseline: expected one of Local DE, SSE, .*got 'SEE'"),
        ("space.preset=mild", r"space: the runs of a comparison .*leave it out"),
        ("network.scratch=true", r"pretraining: random weights are not pre-trained"),
        ("evidence.images=0", r"evidence.images: .*greater than or equal to 1"),
        ("systems=[]", r"systems: .*at least 1 item"),
    ],
)
def test_a_mistake_names_file_key_expectation_and_value(file, change, message):
    if message is None:
        assert load_comparison(file, [change])
        return
    with pytest.raises(InputError, match=f"mine.toml: {message}"):
        load_comparison(file, [change])


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"kind": "swag", "soup": True}, r"systems.a.soup: not of a system of the kind 'swag'"),
        ({"kind": "laplace", "cycle": {}}, r"systems.a.cycle: not of a system of the kind 'laplace'"),
        (
            {"kind": "swag", "members": 1},
            r"systems.a.members: expected at least 2 members of the kind 'swag'",
        ),
        (
            {"kind": "swag", "sampling": {"rank": 1}},
            r"systems.a.sampling.rank: expected 0, or 2 and more, .*got 1",
        ),
        ({"kind": "swag", "sampling": {"rnak": 3}}, r"systems.a.sampling.rnak: unknown key \(did you mean"),
        ({"kind": "swag", "sampling": {"scale": -1.0}}, r"systems.a.sampling.scale: .*greater than or equal"),
        (
            {"kind": "laplace", "sampling": {"layers": "some"}},
            r"systems.a.sampling.layers: .*'all' or 'last'",
        ),
        ({"kind": "simplex"}, r"systems.a.sampling.alpha: missing"),
        (
            {"kind": "simplex", "sampling": {"alpha": 1e-6, "vertices": 1}},
            r"systems.a.sampling.vertices: .*equal to 2",
        ),
        ({"kind": "swag", "cycle": {"steps": 1}}, r"systems.a.cycle.steps: expected at least 2 steps"),
    ],
)
def test_how_members_are_drawn_is_checked(system, message):
    with pytest.raises(ValueError, match=message):
        recipe_of({"name": "a", **system})


def test_later_members_need_a_cycle(file):
    text = RECIPE.replace("[cycle]\nsteps = 4\nlearning_rate = 5e-3\n", "")
    file.write_text(text)
    with pytest.raises(InputError, match=r"mine.toml: systems.SSE.cycle: missing; say in \[cycle\]"):
        load_comparison(file)
    with pytest.raises(InputError, match=r"systems.StarSSE.cycle: missing"):
        load_comparison(file, ["systems.SSE.cycle={}"])


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"kind": "deep_ensemble", "members": 1, "soup": True}, "cannot be averaged, as there is one"),
        ({"kind": "deep_ensemble", "scratch": True, "soup": True}, "different random weights"),
        (
            {"kind": "deep_ensemble", "starts": ["a", "b"], "soup": True},
            "different starts cannot be averaged",
        ),
        ({"kind": "deep_ensemble", "starts": ["a"], "scratch": True}, "starts: not beside scratch"),
        ({"kind": "joint", "inputs": 2}, "objective: expected one that mixes inputs, .*got none"),
        (
            {"kind": "star", "cycle": {}, "objective": "cutmix", "later": "mse"},
            "objective: not beside later, whose members minimise the risk and a term of their own",
        ),
    ],
)
def test_what_cannot_go_together_is_told(system, message):
    with pytest.raises(ValueError, match=message):
        recipe_of({"name": "a", **system})


def test_a_probe_of_random_weights_is_refused():
    with pytest.raises(ValueError, match="probe: random weights have no features to probe"):
        recipe_of(
            {"name": "a", "kind": "deep_ensemble"}, network={"name": "mnist_cnn", "scratch": True}, probe={}
        )


def test_the_other_readers_say_where_a_comparison_is_run(file):
    with pytest.raises(InputError, match="compares ensembles; run it with `mirepoix run"):
        load_recipe(file)
    with pytest.raises(InputError, match=r"expected a recipe with \[\[systems\]\]"):
        load_comparison("digits")
