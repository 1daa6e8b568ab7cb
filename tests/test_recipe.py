import pytest

from mirepoix.recipe import Experiment, Recipe, builtin_recipes, load_recipe, read_values, validated
from mirepoix.runs import MILD, Run, sample_runs
from mirepoix.types import InputError


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


JOBS = [
    name
    for name, path in builtin_recipes().items()
    if not any(tables in path.read_text() for tables in ("[[datasets]]", "[[systems]]", "[front]"))
]
"""The others compare: tests/domainbed/test_settings.py and tests/comparison/test_recipe.py."""

GOOD = 'name = "mine"\n[network]\nname = "cifar_resnet20"\nweights = "w.safetensors"\n'


def test_the_recipes_that_come_along_are_valid_and_named_as_their_files(root):
    assert set(JOBS) == {"digits", "folder", "pacs-resnet20", "pacs-resnet50"}
    for name in JOBS:
        recipe, path = load_recipe(name)
        assert recipe.name == name
        assert path == root / "recipes" / f"{name}.toml"
        header = path.read_text().splitlines()[:8]
        assert any(line.startswith("# Command:") for line in header), path


def test_without_a_recipe_the_built_in_one_is_taken():
    assert load_recipe()[0].data.dataset == "digits"


def test_the_published_protocol_is_the_published_one():
    recipe, _ = load_recipe("pacs-resnet50")
    assert recipe.members == 20
    assert recipe.data.seeds == [0, 1, 2]
    assert recipe.data.size == 224
    assert recipe.network.name == "timm:resnet50.tv_in1k"
    assert recipe.network.frozen_batch_norm
    assert recipe.base_run() == Run(steps=5001, learning_rate=5e-5, batch_size=32, check_every=100)
    assert recipe.probe_run() == recipe.base_run()
    assert sample_runs(recipe.space.space(), 10) == sample_runs(MILD, 10)


def test_lists_in_a_space_are_drawn_under_the_published_names(tmp_path):
    recipe, _ = load_recipe(write(tmp_path, GOOD + "[space]\nlearning_rate = [1e-5, 3e-5, 5e-5]\n"))
    drawn = [run.learning_rate for run in sample_runs(recipe.space.space(), 10)]
    assert drawn == [run.learning_rate for run in sample_runs(MILD, 10)]


def test_a_preset_can_be_changed_in_one_field(tmp_path):
    recipe, _ = load_recipe(write(tmp_path, GOOD + '[space]\npreset = "mild"\ndropout = [0.25]\n'))
    runs = sample_runs(recipe.space.space(), 10)
    assert {run.dropout for run in runs[1:]} == {0.25}
    assert [r.learning_rate for r in runs] == [r.learning_rate for r in sample_runs(MILD, 10)]


def test_the_probe_is_run_zero_but_for_what_its_table_says(tmp_path):
    recipe, _ = load_recipe(write(tmp_path, GOOD + "[run]\nsteps = 7\nbatch_size = 3\n[probe]\nsteps = 4\n"))
    assert recipe.probe_run() == recipe.base_run().with_(steps=4)
    shared, _ = load_recipe(write(tmp_path, "shared_head = true\n" + GOOD))
    assert shared.probe_run() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "[run]\nstpes = 3\n", r"mine.toml: run.stpes: unknown key \(did you mean 'steps'\?\)"),
        (GOOD + "[runs]\nsteps = 3\n", r"mine.toml: runs: unknown key \(did you mean 'run'\?\)"),
        (GOOD + "[run]\nzzz = 3\n", r"run.zzz: unknown key; known keys: steps, learning_rate"),
        ("members = 3\n" + GOOD + "[data]\nsize = '32'\n", r"data.size: .*integer, got '32'"),
        ("members = true\n" + GOOD, r"members: .*integer, got True"),
        ("members = 0\n" + GOOD, r"members: .*greater than or equal to 1, got 0"),
        ("members = 2.5\n" + GOOD, r"members: .*integer, got 2.5"),
        (GOOD + "[run]\nlearning_rate = true\n", r"run.learning_rate: .*number, got True"),
        (GOOD + "[run]\nlearning_rate = nan\n", r"run.learning_rate: .*finite number, got nan"),
        (GOOD + "[run]\nlearning_rate = -1.0\n", r"run.learning_rate: expected a positive number, got -1.0"),
        (GOOD + "[run]\noptimizer = 'lion'\n", r"run.optimizer: .*'adam', 'adamw' or 'sgd', got 'lion'"),
        (GOOD + "[run]\nsteps = 5\nclassifier_steps = 6\n", r"run.classifier_steps: expected 0 to 5"),
        (GOOD + "[data]\nholdout = 1.0\n", r"data.holdout: .*less than 1, got 1.0"),
        (GOOD + "[data]\nseeds = []\n", r"data.seeds: .*at least 1 item"),
        (GOOD + "[data]\ntargets = 'sketch'\n", r"data.targets: "),
        ("[network]\nname = 'mnist_cnn'\n", r"mine.toml: name: missing"),
        ("name = 'x'\n", r"network: missing"),
        ("name = \n", r"mine.toml: not a TOML file: .*line 1"),
    ],
)
def test_a_bad_recipe_names_file_key_expectation_and_value(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path, text))


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, "members = 0\n" + GOOD + "[run]\nstpes = 3\n"))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("members=3", "members", 3),
        ("name=other", "name", "other"),
        ('name="other"', "name", "other"),
        ("shared_head=true", "shared_head", True),
    ],
)
def test_changes_are_toml_values_or_text(change, key, value):
    assert getattr(load_recipe("digits", [change])[0], key) == value


def test_changes_reach_into_tables_and_make_missing_ones():
    recipe, _ = load_recipe("digits", ["run.steps=5", "data.seeds=[0, 1]", "evidence.subsets=0"])
    assert recipe.run.steps == 5
    assert recipe.data.seeds == [0, 1]
    assert recipe.evidence.subsets == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.stpes=5", r"run.stpes: unknown key \(did you mean 'steps'\?\)"),
        ("steps", "expected key=value"),
        ("=5", "expected key=value"),
        ("name.first=5", "'name' is a value and has no keys below it"),
    ],
)
def test_a_bad_change_is_an_error(change, message):
    with pytest.raises(InputError, match=message):
        load_recipe("digits", [change])


def test_a_recipe_that_is_not_there_suggests_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"no such recipe file; .* Did you mean 'digits'\?"):
        load_recipe("digit")
    with pytest.raises(InputError, match=r"expected a recipe .* got a folder. Images are given by --data"):
        load_recipe(tmp_path)


def test_a_recipe_survives_being_written_and_read():
    for name in JOBS:
        recipe, _ = load_recipe(name)
        assert Recipe.model_validate(recipe.model_dump(exclude_none=True)) == recipe


def test_every_kind_of_recipe_has_a_network_and_runs(tmp_path):
    text = (
        "[network]\nname = 'mnist_cnn'\n[run]\nsteps = 30\nclassifier_steps = 4\n[pretraining]\nsteps = 7\n"
    )
    values, path = read_values(write(tmp_path, text), ["probe.learning_rate=0.5"])
    experiment = validated(Experiment, values, path)
    assert experiment.base_run() == Run(steps=30, classifier_steps=4)
    assert experiment.probe_run() == Run(steps=30, learning_rate=0.5)
    assert experiment.pretraining_run() == Run(steps=7)
    assert not isinstance(experiment, Recipe)
    plain = validated(Experiment, {"network": {"name": "mnist_cnn"}}, path)
    assert plain.pretraining_run() is None
    assert plain.space.space() == MILD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("members=3", r"mine.toml: members: unknown key; known keys: network, pretraining, probe"),
        ("netwrk.name=x", r"netwrk: unknown key \(did you mean 'network'\?\)"),
        ("probe.steps=0", r"probe.steps: .*greater than or equal to 1, got 0"),
        ("pretraining.learning_rate=0.0", r"pretraining.learning_rate: expected a positive number, got 0.0"),
        ("run.ema_decay=1.0", r"run.ema_decay: .*less than 1, got 1.0"),
        ("run.swad_tolerance=-1", r"run.swad_tolerance: .*greater than or equal to 0"),
        ("run.augment_validation=1", r"run.augment_validation: .*boolean, got 1"),
    ],
)
def test_a_mistake_in_any_kind_of_recipe_is_named(tmp_path, change, message):
    values, path = read_values(write(tmp_path, "[network]\nname = 'mnist_cnn'\n"), [change])
    with pytest.raises(InputError, match=message):
        validated(Experiment, values, path)


def test_a_change_names_the_table_of_a_list(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text('[[datasets]]\ndataset = "PACS"\n[[datasets]]\ndataset = "folder"\nname = "mine"\n')
    values, _ = read_values(path, ["datasets.PACS.size=32", "datasets.mine.skip_unreadable=true"])
    assert [table.get("size") for table in values["datasets"]] == [32, None]
    assert values["datasets"][1]["skip_unreadable"] is True
    with pytest.raises(InputError, match=r"expected the name of one table \(PACS, mine\), got 'VLCS'"):
        read_values(path, ["datasets.VLCS.size=32"])
    with pytest.raises(InputError, match=r"several tables; name one, such as datasets\.NAME\.size"):
        read_values(path, ["datasets.size=32"])


# What the runs minimise


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        (GOOD, "erm", {}),
        ("objective = 'fishr'\n" + GOOD, "fishr", {}),
        (
            GOOD + "[objective]\nname = 'fishr'\nlambda_ = 10.0\nema = 0.5\n",
            "fishr",
            {"lambda_": 10.0, "ema": 0.5},
        ),
        (
            GOOD + "[objective]\nname = 'sam'\nrho = 0.1\nobjective = 'coral'\n",
            "sam",
            {"rho": 0.1, "objective": "coral"},
        ),
    ],
)
def test_an_objective_is_a_name_or_a_table(tmp_path, text, name, options):
    recipe, _ = load_recipe(write(tmp_path, text))
    assert (recipe.objective.name, recipe.objective.options) == (name, options)
    assert Recipe.model_validate(recipe.model_dump(exclude_none=True)) == recipe


@pytest.mark.parametrize(
    "changes",
    [
        ["objective.name=fishr", "objective.ema=0.5", "objective.penalty_anneal_iters=9"],
        ["objective=fishr", "objective.ema=0.5", "objective.penalty_anneal_iters=9"],
        ["objective.ema=0.5", "objective=fishr", "objective.penalty_anneal_iters=9"],
        ["objective.ema=0.5", "objective=erm", " objective = fishr", "objective.penalty_anneal_iters=9"],
        ['objective={name="fishr", ema=0.5, penalty_anneal_iters=9}'],
    ],
)
def test_an_objective_can_be_set(changes):
    table = load_recipe("digits", changes)[0].objective
    assert (table.name, table.options) == ("fishr", {"ema": 0.5, "penalty_anneal_iters": 9})


def test_another_objective_has_none_of_the_options_of_the_file(tmp_path):
    path = write(tmp_path, GOOD + "[objective]\nname = 'fishr'\nlambda_ = 10.0\n")
    table = load_recipe(path, ["objective.mmd_gamma=2.0", "objective=coral"])[0].objective
    assert (table.name, table.options) == ("coral", {"mmd_gamma": 2.0})
    inner = ["objective.objective.mmd_gamma=2.0", "objective.objective=coral", "objective=sam"]
    table = load_recipe(path, inner)[0].objective
    assert (table.name, table.options) == ("sam", {"objective": {"name": "coral", "mmd_gamma": 2.0}})


@pytest.mark.parametrize(
    ("objective", "steps", "told"),
    [
        ("name = 'fishr'", 60, "fishr begins at update 1500, and a run has 60 steps, .*; set objective.pen"),
        ("name = 'fishr'\npenalty_anneal_iters = 60", 60, "begins at update 60, .*anneal_iters below 60"),
        ("name = 'fishr'\npenalty_anneal_iters = 59", 60, None),
        ("name = 'eqrm'\neqrm_burnin_iters = 59.5", 60, None),
        ("name = 'erm_plus_plus'\nlinear_steps = 59", 60, "update 60, .*set objective.linear_steps below 59"),
        ("name = 'coral'", 1, None),
    ],
)
def test_an_objective_that_begins_after_the_last_step_is_refused(tmp_path, objective, steps, told):
    path = write(tmp_path, GOOD + f"[objective]\n{objective}\n")
    change = [f"run.steps={steps}"]
    if told is None:
        assert load_recipe(path, change)
        return
    with pytest.raises(InputError, match=f"mine.toml: objective: .*{told}.*or run.steps higher"):
        load_recipe(path, change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name = 'fisher'\n",
            r"objective.name: there is no objective 'fisher' \(did you mean 'fishr'\?\); known: erm",
        ),
        (
            "name = 'fishr'\nlamda = 1\n",
            r"objective.lamda: fishr has no such option \(did you mean 'lambda_'\?\)",
        ),
        ("name = 'fishr'\nema = 2.0\n", "objective: Fishr needs .*ema"),
        ("name = 'fishr'\nema = 'x'\n", "objective.ema: .*number, got 'x'"),
        ("name = 'fishr'\ndomains = 3\n", "objective.domains: .*leave it out"),
        ("rho = 0.1\n", "objective.rho: erm has no such option; it takes none"),
        ("name = 3\n", "objective.name: .*string, got 3"),
        ("name = 'mtl'\n", "objective.name: no recipe can name 'mtl'"),
    ],
)
def test_a_mistake_about_the_objective_names_file_and_key(tmp_path, text, message):
    with pytest.raises(InputError, match=f"mine.toml: {message}"):
        load_recipe(write(tmp_path, GOOD + "[objective]\n" + text))


def test_an_objective_is_no_number(tmp_path):
    with pytest.raises(InputError, match=r"objective: .*dictionary.*got 3"):
        load_recipe(write(tmp_path, "objective = 3\n" + GOOD))
