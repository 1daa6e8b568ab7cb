import dataclasses

import pytest

from mirepoix.domainbed import Benchmark, load_benchmark
from mirepoix.domainbed._nodes import TaskName
from mirepoix.objectives._named import BEGIN_OPTIONS, NOT_IN_RECIPES, OBJECTIVES
from mirepoix.objectives._spaces import draw_options
from mirepoix.recipe import builtin_recipes, load_recipe, validated
from mirepoix.runs import Run
from mirepoix.types import InputError

TASK = TaskName("digits", "rotated_0")

BENCHMARKS = [name for name, path in builtin_recipes().items() if "[[datasets]]" in path.read_text()]

AUXILIARY = "auxiliaries=[{dataset='digits-parity', size=12}]"
NO_AUXILIARY = "auxiliaries=[]"


def load(recipe_file, *changes):
    return load_benchmark(recipe_file, changes)[0]


def test_the_benchmarks_that_come_along_are_valid_and_named_as_their_files(root):
    assert {"ratatouille-digits", "pacs-strategies"} <= set(BENCHMARKS)
    for name in BENCHMARKS:
        benchmark, path = load_benchmark(name)
        assert benchmark.name == name
        assert path == root / "recipes" / f"{name}.toml"
        assert any(line.startswith("# Command:") for line in path.read_text().splitlines()[:8])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_no_job_and_the_error_says_how_to_run_it(name):
    with pytest.raises(InputError, match=f"run it with `mirepoix domainbed run {name}`"):
        load_recipe(name)


def test_a_job_is_no_benchmark_and_the_error_says_how_to_run_it():
    with pytest.raises(
        InputError, match=r"digits.toml: this recipe is one job; run it with `mirepoix run digits`"
    ):
        load_benchmark("digits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "strategies=['diwaa']",
            r"tiny.toml: strategies: there is no strategy 'diwaa' \(did you mean 'diwa'\?\)",
        ),
        (
            "strategies=['sam/avg']",
            "strategies: 'sam/avg': 'avg' is no way to combine members; expected one of",
        ),
        ("strategies=['smm/average']", r"strategies: .*with a family of fine_tuning"),
        ("strategies=['diwa', 'diwa']", "strategies: expected each strategy once"),
        ("strategies=[]", "strategies: .*at least 1 item"),
        (
            "selection=['training']",
            r"selection.0: .*'training-domain', 'leave-one-out' or 'oracle', got 'training'",
        ),
        ("objectives=['erm', 'irn']", r"objectives: there is no objective 'irn' \(did you mean 'irm'\?\)"),
        ("objectives=['erm', 'mtl']", r"objectives: no recipe can name 'mtl': .*In Python"),
        ("objectives=[]", "objectives: .*at least 1 item"),
        (
            "objective_options.fishr={lamda=1.0}",
            r"objective_options.fishr.lamda: fishr has no such option \(did you mean 'lambda_'\?\)",
        ),
        ("objective_options.fishr={ema=2.0}", r"objective_options.fishr: Fishr needs .*ema"),
        ("objective_options.fishr={ema='0.9'}", r"objective_options.fishr.ema: .*number, got '0.9'"),
        ("objective_options.fisher={ema=0.9}", r"objective_options: there is no objective 'fisher'"),
        ("objective_options.urm={}", r"objective_options: no recipe can name 'urm'"),
        ("objective_options.fishr.ema=2.0", r"objective_options.fishr: Fishr needs"),
        ("search_objectives=1", "search_objectives: .*boolean, got 1"),
        ("objective='fishr'", r"objective: unknown key \(did you mean 'objectives'\?\)"),
        ("strategies=['urm']", "strategies: 'urm' can be no row"),
        ("selection=['oracle', 'oracle']", "selection: expected each selection once"),
        (
            "auxiliaries=[{dataset='digits-sloped', targets=['from_top']}]",
            "auxiliaries: 'digits-sloped' is trained on whole; leave its `targets` out",
        ),
        ("keep=['best', 'first']", r"keep: expected some of best, last, .*got 'first'"),
        ("protocol='published'", r"protocol: .*'corrected' or 'reference', got 'published'"),
        ("strategys=['diwa']", r"strategys: unknown key \(did you mean 'strategies'\?\)"),
        ("run.stepz=3", r"run.stepz: unknown key \(did you mean 'steps'\?\)"),
        ("datasets=[{dataset='digits', siez=12}]", r"datasets.0.siez: unknown key \(did you mean 'size'\?\)"),
        (
            "auxiliaries=[{datset='digits'}]",
            r"auxiliaries.0.datset: unknown key \(did you mean 'dataset'\?\)",
        ),
        ("runs=0", "runs: .*greater than or equal to 1, got 0"),
        ("wise_points=1", "wise_points: .*greater than or equal to 2, got 1"),
        ("sharpness_radius=0.0", "sharpness_radius: .*greater than 0"),
        (
            "auxiliary_run.learning_rate=-1.0",
            r"auxiliary_run.learning_rate: expected a positive number, got -1.0",
        ),
        ("probe.learning_rate=-1.0", r"probe.learning_rate: expected a positive number"),
        ("space.dropout=[0.0, 1.0]", r"space.dropout: expected a probability"),
    ],
)
def test_a_mistake_names_the_key_what_was_expected_and_what_came(recipe_file, change, message):
    with pytest.raises(InputError, match=message):
        load(recipe_file, change)


def test_names_stand_for_one_thing(recipe_file, scratch_file):
    twice = "[{dataset='digits', size=12}, {dataset='digits', size=16}]"
    with pytest.raises(
        InputError, match="datasets: expected different names, got 'digits' twice; set `name`"
    ):
        load(recipe_file, f"datasets={twice}")
    with pytest.raises(InputError, match="auxiliaries: expected different names"):
        load(recipe_file, f"auxiliaries={twice}")
    named = "[{dataset='digits', size=12}, {dataset='digits', size=16, name='large digits'}]"
    assert [table.label for table in load(scratch_file, f"datasets={named}").datasets] == [
        "digits",
        "large digits",
    ]


def test_a_dataset_and_an_auxiliary_task_never_share_a_name(recipe_file):
    for table in ("{dataset='digits-parity', name='digits', size=12}", "{dataset='digits', size=12}"):
        with pytest.raises(
            InputError, match="auxiliaries: expected a name that no dataset has, got 'digits'; set"
        ):
            load(recipe_file, f"auxiliaries=[{table}]")


@pytest.mark.parametrize("row", ["ratatouille", "inter_training", "robust_ratatouille", "fusing"])
def test_rows_that_start_from_auxiliary_tasks_need_one_for_each_dataset(recipe_file, row):
    needs = f"strategies: '{row}' needs 1 auxiliary task other than the dataset 'digits', got 0; add"
    with pytest.raises(InputError, match=needs):
        load(recipe_file, f"strategies=['{row}']", NO_AUXILIARY)
    with pytest.raises(InputError, match=needs):
        load(recipe_file, f"strategies=['{row}']", "auxiliaries=[{dataset='digits', name='again', size=12}]")
    load(recipe_file, f"strategies=['{row}']", AUXILIARY)


def test_an_error_about_a_whole_recipe_does_not_repeat_the_recipe(recipe_file):
    with pytest.raises(InputError) as caught:
        load(recipe_file, "strategies=['ratatouille']", NO_AUXILIARY)
    assert str(caught.value).startswith(f"{recipe_file}: strategies: 'ratatouille' needs")
    assert str(caught.value).endswith("add [[auxiliaries]]")


def test_sequential_inter_training_needs_two_auxiliary_tasks(recipe_file):
    with pytest.raises(InputError, match="'sequential_inter_training' needs 2 auxiliary tasks"):
        load(recipe_file, "strategies=['diwa', 'sequential_inter_training']", AUXILIARY)
    load(recipe_file, "strategies=['sequential_inter_training']")
    load(recipe_file, "strategies=['diwa']", NO_AUXILIARY)


def test_a_training_keeps_what_the_rows_need(recipe_file):
    lean = "keep=['best']"
    assert load(recipe_file, lean).collected() == ("best",)
    assert load(recipe_file, "keep=[]").collected() == ("best",)
    assert load(recipe_file, lean, "selection=['oracle']").collected() == ("best", "last")
    rows = {
        "ratatouille": ("best", "last"),
        "robust_ratatouille": ("best", "last", "moving_average"),
        "sam_moving_average": ("best", "moving_average"),
        "swad_released": ("best", "swad_released"),
        "ema": ("best", "ema"),
    }
    for row, kept in rows.items():
        assert load(recipe_file, lean, f"strategies=['{row}']").collected() == kept


def test_the_protocols_differ_in_validation_images_and_in_one_frozen_step(recipe_file):
    corrected, reference = load(recipe_file), load(recipe_file, "protocol='reference'")
    assert not corrected.base_run().augment_validation
    assert all(run.augment_validation for run in reference.runs_on("digits"))
    assert all(run.augment_validation for run in reference.runs_on("digits-sloped"))
    assert reference.probe_on("digits").augment_validation
    assert (corrected.freeze_on("digits"), reference.freeze_on("digits")) == (3, 4)
    published = load(recipe_file, "protocol='reference'", "run.steps=5001", "frozen_steps=200")
    assert published.freeze_on("digits") == 201
    assert load(recipe_file, "frozen_steps=100").freeze_on("digits") == 8  # never more than a run has
    chosen = load(recipe_file, "protocol='reference'", "run.augment_validation=false")
    assert not chosen.base_run().augment_validation


def test_run_zero_is_the_base_and_the_others_are_drawn_for_each_data_seed(recipe_file):
    benchmark = load(recipe_file, "runs=5")
    base = Run(
        steps=8,
        learning_rate=3e-3,
        batch_size=4,
        check_every=2,
        average_from=3,
        ema_decay=0.5,
        swad_start_patience=1,
        swad_end_patience=2,
    )
    one, other = benchmark.runs_on("digits", 0), benchmark.runs_on("digits", 1)
    assert one[0] == base.with_(seed=one[0].seed)
    assert len({run.seed for run in (*one, *other)}) == 10
    for run in (*one[1:], *other[1:]):
        assert run.learning_rate in (1e-3, 3e-3, 1e-2)
        assert run.weight_decay in (1e-4, 1e-6)
        assert run.dropout in (0.0, 0.1)
    assert [run.with_(seed=0) for run in one[1:]] != [run.with_(seed=0) for run in other[1:]]


def test_auxiliary_runs_are_those_of_the_target_but_for_their_tables(recipe_file):
    benchmark = load(recipe_file, "auxiliary_run.steps=6", "auxiliary_runs=3", "runs=4")
    assert [run.steps for run in benchmark.runs_on("digits-sloped")] == [6, 6, 6]
    assert [run.steps for run in benchmark.runs_on("digits")] == [8, 8, 8, 8]
    alone = load(recipe_file, "auxiliary_runs=3")
    assert alone.runs_on("digits-sloped") == alone.runs_on("digits")  # trial 0 of the same space


SEEDS = "datasets=[{dataset='digits', size=12, seeds=[0, 1]}]"
ALONE = ("shared_probe=false", "strategies=['diwa', 'ratatouille_dagger']")


def test_members_averaged_over_data_seeds_must_begin_with_one_head(recipe_file):
    needs = (
        "strategies: 'ratatouille_dagger' averages members of all data seeds, which must begin with one head; "
        "set shared_probe = true"
    )
    with pytest.raises(InputError, match=needs):
        load(recipe_file, SEEDS, *ALONE)
    with pytest.raises(InputError, match="'sam/dagger' averages members of all data seeds"):
        load(recipe_file, SEEDS, "shared_probe=false", "strategies=['sam/dagger']")
    for change in ("shared_probe=true", "shared_head=true", "protocol='reference'"):
        assert load(recipe_file, SEEDS, *ALONE, change).rows()[1].combine == "dagger"
    assert load(recipe_file, *ALONE).datasets[0].seeds == [0]  # nothing to average over
    assert not load(recipe_file, SEEDS, "shared_probe=false").shared_probe  # nor without the row
    values = {**load(recipe_file, SEEDS, *ALONE, "shared_probe=true").model_dump(), "shared_probe": False}
    assert Benchmark.model_validate({**values, "probe": None}).probe is None
    with pytest.raises(InputError, match=needs):
        validated(Benchmark, values, recipe_file)


def test_each_data_seed_has_its_own_probe_unless_the_recipe_says_so(recipe_file, tmp_path):
    assert load(recipe_file).shared_probe
    plain = tmp_path / "tiny.toml"
    plain.write_text(recipe_file.read_text().replace("shared_probe = true\n", ""))
    assert not load(plain).shared_probe


@pytest.mark.parametrize("dataset", ["ColoredMNIST", "RotatedMNIST"])
def test_what_is_made_of_all_data_seeds_has_seen_targets_that_a_data_seed_deals_anew(recipe_file, dataset):
    two, one = (f"datasets=[{{dataset='{dataset}', seeds={seeds}}}]" for seeds in ([0, 1], [3]))
    refused = f"{dataset}: each data seed deals its digits to the domains anew, .*one data seed"
    dagger = "strategies=['diwa_dagger']"
    for changes in (
        ("shared_probe=true",),
        ("shared_probe=true", dagger),
        ("shared_probe=true", "protocol='reference'"),
        ("shared_probe=false", "shared_head=true", dagger),
        ("shared_probe=false", "protocol='reference'", dagger),
    ):
        with pytest.raises(InputError, match=refused):
            load(recipe_file, two, *changes)
        assert load(recipe_file, one, *changes).datasets[0].seeds == [3]
    for protocol in ("corrected", "reference"):
        found = load(recipe_file, two, "shared_probe=false", f"protocol='{protocol}'")
        assert found.datasets[0].seeds == [0, 1]


def test_the_error_about_digits_dealt_anew_calls_the_dataset_by_its_name(recipe_file):
    tables = (
        "{dataset='digits', size=12, seeds=[0, 1]}, {dataset='RotatedMNIST', name='turned', seeds=[0, 1]}"
    )
    with pytest.raises(InputError, match="turned: each data seed deals its digits"):
        load(recipe_file, f"datasets=[{tables}]")


def test_built_in_digits_with_one_pretraining_have_one_size(recipe_file, scratch_file):
    refused = "the built-in digits share one pre-training, so all their tables need the same size"
    datasets = "datasets=[{dataset='digits', size=12}, {dataset='digits-parity', size=16}]"
    auxiliaries = "auxiliaries=[{dataset='digits-inverted', size=12}, {dataset='digits-sloped'}]"
    for change in (datasets, auxiliaries):
        with pytest.raises(InputError, match=refused):
            load(recipe_file, change)
        load(scratch_file, change)
    # 16 is their size unless one is given
    same = ("datasets=[{dataset='digits', size=16}]", "auxiliaries=[{dataset='digits-sloped'}]")
    assert [table.size for table in load(recipe_file, *same).tables()] == [16, None]


def test_auxiliary_tasks_are_sorted_by_label(recipe_file):
    pool = "auxiliaries=[{dataset='digits-sloped', name='b', size=12}, {dataset='digits-inverted', name='c', size=12}"
    found = load(recipe_file, f"{pool}, {{dataset='digits-parity', name='a', size=12}}]")
    assert [each.label for each in found.auxiliaries] == ["b", "c", "a"]  # as written
    assert [each.label for each in found.auxiliaries_for(found.datasets[0])] == ["a", "b", "c"]


def test_a_dataset_and_an_auxiliary_task_can_have_runs_of_their_own(recipe_file):
    benchmark = load(
        recipe_file,
        "datasets=[{dataset='digits', size=12, run={steps=5}}]",
        "auxiliaries=[{dataset='digits-parity', size=12, run={steps=7}}, {dataset='digits-sloped', size=12}]",
        "auxiliary_run.steps=6",
        "probe.steps=2",
        "frozen_steps=20",
    )
    steps = [benchmark.base_run_on(name).steps for name in ("digits", "digits-parity", "digits-sloped")]
    assert steps == [5, 7, 6]
    assert benchmark.base_run().steps == 8
    assert benchmark.probe_on("digits-parity").steps == 2
    assert benchmark.freeze_on("digits") == 5
    for kind, others in (("datasets", ""), ("auxiliaries", ", {dataset='digits-parity', size=12}")):
        name = "digits" if kind == "datasets" else "digits-sloped"
        with pytest.raises(
            InputError, match=rf"{kind}\.{name}\.run\.learning_rate: expected a positive number"
        ):
            load(recipe_file, f"{kind}=[{{dataset='{name}', size=12, run={{learning_rate=-1.0}}}}{others}]")


def test_an_average_that_would_be_the_last_weights_is_refused(recipe_file):
    with pytest.raises(
        InputError, match="'moving_average' averages from update 9 on, but a run on digits has 8 steps"
    ):
        load(recipe_file, "strategies=['moving_average']", "run.average_from=9")
    assert load(recipe_file, "strategies=['diwa']", "run.average_from=9")  # nobody asks for it
    with pytest.raises(InputError, match=r"looks for 6 checks in a row .*, but a run on digits has 5"):
        load(recipe_file, "strategies=['swad']", "run.swad_start_patience=6")
    assert load(recipe_file, "strategies=['swad']", "run.swad_start_patience=5")


# Objectives


def test_options_of_an_objective_are_those_of_its_table(recipe_file):
    rows = "strategies=['fishr', 'sam']"
    fishr = "objective_options.fishr={lambda_=10.0, penalty_anneal_iters=3}"
    benchmark = load(
        recipe_file, rows, fishr, "objective_options.sam.objective='coral'", "sharpness_radius=0.2"
    )
    assert benchmark.options_of("fishr") == {"lambda_": 10.0, "penalty_anneal_iters": 3}
    assert benchmark.options_of("sam") == {"rho": 0.2, "objective": "coral"}
    assert benchmark.options_of("erm") == {}
    assert load(recipe_file, "strategies=['sam']", "objective_options.sam.rho=0.3").options_of("sam") == {
        "rho": 0.3
    }
    assert load(recipe_file).options_of("sam") == {"rho": 0.05}


def test_every_objective_that_predicts_by_weights_alone_can_have_a_turn(recipe_file):
    names = [name for name in OBJECTIVES if name not in NOT_IN_RECIPES]
    assert load(recipe_file, f"objectives={names}").objectives == tuple(names)
    anneal = [f"objective_options.{name}.{key}=7" for name, keys in BEGIN_OPTIONS.items() for key in keys]
    anneal[anneal.index("objective_options.erm_plus_plus.linear_steps=7")] = (
        "objective_options.erm_plus_plus.linear_steps=6"
    )
    row = "strategies=['diverse_objectives']"
    assert load(recipe_file, f"objectives={names}", row, f"runs={len(names)}", *anneal).objectives == tuple(
        names
    )
    assert "sam" in names


def test_without_a_search_nothing_is_drawn(recipe_file):
    benchmark = load(recipe_file)
    assert {benchmark.drawn_options(name, h, TASK) for name in ("fishr", "sam") for h in range(4)} == {()}


def test_a_search_draws_what_the_recipe_does_not_say(recipe_file):
    rows = "strategies=['fishr', 'sam']"
    fishr = "objective_options.fishr={ema=0.9, penalty_anneal_iters=3}"
    benchmark = load(recipe_file, "search_objectives=true", rows, fishr)
    seeded = dataclasses.replace(TASK, data_seed=2)
    for task, h in ((TASK, 1), (TASK, 2), (seeded, 1)):
        drawn = draw_options("fishr", h, task.data_seed)
        assert drawn.pop("ema") != 0.9
        assert drawn.pop("penalty_anneal_iters") != 3
        assert dict(benchmark.drawn_options("fishr", h, task)) == drawn
        assert dict(benchmark.drawn_options("sam", h, task)) == draw_options("sam", h, task.data_seed)
        assert benchmark.drawn_options("erm", h, task) == ()
    assert benchmark.drawn_options("fishr", 0, TASK) == ()  # run 0 has the defaults
    said = load(recipe_file, "search_objectives=true", rows, fishr, "objective_options.sam.rho=0.3")
    assert said.drawn_options("sam", 1, TASK) == ()


def test_small_images_have_ranges_and_defaults_of_their_own(recipe_file):
    tables = "datasets=[{dataset='digits', size=12}, {dataset='PACS', name='pictures'}]"
    benchmark = load(recipe_file, tables, "search_objectives=true")
    pictures = TaskName("pictures", "sketch")
    assert benchmark.drawn_options("dann", 0, pictures) == ()
    assert benchmark.drawn_options("dann", 0, TASK) == (("lr_d", 1e-3),)
    assert dict(benchmark.drawn_options("dann", 1, pictures)) == draw_options("dann", 1)
    assert dict(benchmark.drawn_options("dann", 1, TASK)) == draw_options("dann", 1, small=True)
    assert load(recipe_file, tables).drawn_options("dann", 0, TASK) == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["strategies=['fishr/average']"],
            "'fishr/average' cannot be trained: fishr begins at update 1500, and a run on digits has 8 steps",
        ),
        (["strategies=['irm']"], "set objective_options.irm.irm_penalty_anneal_iters below 8, or run.steps"),
        (["strategies=['diverse_objectives']", "objectives=['erm', 'trm']"], "trm begins at update 200"),
        (["strategies=['fishr']", "objective_options.fishr.penalty_anneal_iters=8"], "begins at update 8, "),
        # Run 0 has the defaults, and what is said is never drawn.
        (["strategies=['fishr']", "search_objectives=true"], "fishr begins at update 1500"),
        (
            [
                "strategies=['diverse_objectives']",
                "objectives=['erm', 'fishr']",
                "search_objectives=true",
                "objective_options.fishr.penalty_anneal_iters=8",
            ],
            "begins at update 8, ",
        ),
        (
            [
                "strategies=['ib_irm']",
                "search_objectives=true",
                "objective_options.ib_irm.irm_penalty_anneal_iters=9",
            ],
            "ib_irm begins at update 500, .*set objective_options.ib_irm.irm_penalty_anneal_iters and ",
        ),
        (
            [
                "strategies=['fishr']",
                "datasets=[{dataset='digits', size=12, run={steps=2000}}, {dataset='digits-parity', size=12}]",
            ],
            "a run on digits-parity has 8 steps",
        ),
    ],
)
def test_an_objective_that_begins_after_the_last_step_is_refused(recipe_file, changes, told):
    with pytest.raises(InputError, match=f"tiny.toml: strategies: .*{told}"):
        load(recipe_file, NO_AUXILIARY, *changes)


@pytest.mark.parametrize(
    "changes",
    [
        ["strategies=['fishr']", "objective_options.fishr.penalty_anneal_iters=7"],
        ["strategies=['fishr']", "run.steps=1501"],
        ["strategies=['diwa']", "objectives=['erm', 'fishr']"],  # nobody asks for it
        ["strategies=['diverse_objectives']", "objectives=['erm', 'mixup', 'coral', 'fishr']"],  # of 3 runs
        [
            "strategies=['diverse_objectives']",
            "objectives=['erm', 'fishr']",
            "search_objectives=true",
        ],  # drawn
    ],
)
def test_an_objective_that_begins_in_time_or_is_drawn_is_not(recipe_file, changes):
    assert load(recipe_file, *changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["objective_options.fishr.ema=0.5"], "fishr: no row trains by 'fishr'; the rows train by erm. Add"),
        (["strategies=['diverse_objectives', 'sam']", "objective_options.sd={}"], "sd: .* by erm, mixup, coral, sam"),
        (["strategies=['coral']", "objectives=['sd']", "objective_options.sd={}"], "sd: .* train by coral"),
    ],
)  # fmt: skip
def test_options_that_nothing_is_trained_by_are_refused(recipe_file, changes, told):
    with pytest.raises(InputError, match=f"tiny.toml: objective_options.{told}"):
        load(recipe_file, *changes)
