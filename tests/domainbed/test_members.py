from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mirepoix.domainbed import FAMILIES, load_benchmark
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import Interpolated, Pretrained, TaskName, Trained, WithHead, trainings
from mirepoix.objectives._spaces import draw_options
from mirepoix.strategies import fusing_coefficients
from mirepoix.training import Trainer
from mirepoix.weights import average

TASK = TaskName("digits", "rotated_0")
INVERTED, SLOPED, PARITY = "digits-inverted", "digits-sloped", "digits-parity"
THREE = (
    "auxiliaries=[" + ", ".join(f"{{dataset='{name}', size=12}}" for name in (INVERTED, SLOPED, PARITY)) + "]"
)


@pytest.fixture(scope="module")
def members(recipe_file):
    def make(*changes):
        return Members(load_benchmark(recipe_file, changes)[0])

    return make


def begins(node):
    """The auxiliary task and the number of its run that a member begins at; None for theta_pt."""
    if not isinstance(node.theta, WithHead):
        return None
    return node.theta.theta.task.dataset, node.theta.theta.run


@pytest.mark.parametrize("family", ["inter_training", "robust"])
def test_run_h_begins_at_task_h_mod_a_plus_1_and_run_h_mod_r(members, family):
    made = members(THREE, "runs=20", "auxiliary_runs=4", "strategies=['robust_ratatouille']")
    names, collect = [None, INVERTED, PARITY, SLOPED], "moving_average" if family == "robust" else "last"
    for h, node in enumerate(made.of(family, TASK)):
        expected = None
        if names[h % 4]:
            runs = made.benchmark.runs_on(names[h % 4])
            expected = (names[h % 4], runs[h % 4].with_(collect=collect))
        assert begins(node) == expected


def test_with_four_tasks_of_four_runs_twenty_runs_use_each_once(members):
    four = THREE[:-1] + ", {dataset='digits-quarter_turns', size=12}]"
    nodes = members(four, "runs=20", "auxiliary_runs=4").of("inter_training", TASK)
    starts = [begins(node) for node in nodes]
    assert starts.count(None) == 4
    assert len(set(starts) - {None}) == 16


def test_a_run_from_theta_pt_is_the_training_of_diwa(members):
    made = members("runs=7")
    diwa = made.of("fine_tuning", TASK)
    for family in ("inter_training", "robust"):
        nodes = made.of(family, TASK)
        assert [h for h in range(7) if nodes[h].training() == diwa[h].training()] == [0, 3, 6]
        assert all(node.run.classifier_steps == (0 if h % 3 == 0 else 3) for h, node in enumerate(nodes))
    for family in ("moving_average", "ema", "swad", "swad_released"):
        assert [node.training() for node in made.of(family, TASK)] == [node.training() for node in diwa]
    assert [n.training() for n in made.of("sam", TASK)] == [
        n.training() for n in made.of("sam_moving_average", TASK)
    ]
    assert {node.objective for node in made.of("sam", TASK)} == {"sam"}


def test_diverse_objectives_take_turns_and_share_those_of_diwa(members):
    made = members("runs=5", "objectives=['mixup', 'erm']")
    nodes, diwa = made.of("objectives", TASK), made.of("fine_tuning", TASK)
    assert [node.objective for node in nodes] == ["mixup", "erm", "mixup", "erm", "mixup"]
    assert [h for h in range(5) if nodes[h] == diwa[h]] == [1, 3]


def test_a_family_by_an_objective_is_fine_tuning_by_it(members):
    made = members("runs=3")
    by_fishr, diwa = made.of("fishr", TASK), made.of("fine_tuning", TASK)
    assert [replace(node, objective="erm") for node in by_fishr] == diwa
    assert {node.objective for node in by_fishr} == {"fishr"}
    assert made.of("erm", TASK) == diwa


def test_a_search_draws_options_for_each_run_and_leaves_the_rest_as_it_was(members):
    plain, made = members("runs=3"), members("runs=3", "search_objectives=true")
    for family in ("fine_tuning", "inter_training", "moving_average"):
        assert made.of(family, TASK) == plain.of(family, TASK)
    nodes = made.of("fishr", TASK)
    assert [dict(node.options) for node in nodes] == [{}, draw_options("fishr", 1), draw_options("fishr", 2)]
    assert [replace(node, options=()) for node in nodes] == plain.of("fishr", TASK)
    turns = made.of("objectives", TASK)  # erm, mixup, coral
    assert [node.options for node in turns] == [
        (),
        *(made.of(n, TASK)[h].options for h, n in ((1, "mixup"), (2, "coral"))),
    ]
    averages = made.of("sam_moving_average", TASK)
    assert [node.training() for node in averages] == [node.training() for node in made.of("sam", TASK)]
    assert [dict(node.options) for node in averages[1:]] == [draw_options("sam", 1), draw_options("sam", 2)]


def test_all_members_begin_with_the_head_of_the_target(members):
    made = members("runs=4")
    head = made.start(TASK)
    assert isinstance(head, Trained)
    assert head.run.classifier_steps == head.run.steps == 4
    for node in made.of("inter_training", TASK):
        assert node.theta == head or node.theta.head == head
    for node in made.of("sequential", TASK):
        assert node.theta.head == head
    for node in made.of("fusing", TASK):
        first, *others = node.theta.thetas
        assert first == head
        assert all(other.head == head for other in others)


def test_without_a_probe_all_runs_share_the_fresh_head(members):
    assert members("shared_head=true").start(TASK) == Pretrained("digits")


def test_an_auxiliary_task_is_trained_on_whole_and_from_its_own_probe(members):
    made = members()
    probe, auxiliary = trainings(made.of("inter_training", TASK)[1].theta.theta)
    assert auxiliary.task == probe.task == TaskName(INVERTED)
    assert probe.run.classifier_steps == probe.run.steps
    assert auxiliary.theta == probe


def test_the_dataset_itself_is_no_auxiliary_task_whatever_its_name_and_size(scratch_file):
    pool = (
        "auxiliaries=[{dataset='digits', name='the digits', size=16}, {dataset='digits-sloped', size=12},"
        " {dataset='digits', name='again', size=12}, {dataset='digits-inverted', size=12}]"
    )
    made = Members(load_benchmark(scratch_file, [pool, "runs=9", "auxiliary_runs=1"])[0])
    assert made.auxiliaries("digits") == [INVERTED, SLOPED]
    for family in ("inter_training", "robust", "sequential", "fusing"):
        needed = {t.task.dataset for node in made.of(family, TASK) for t in trainings(node)}
        assert needed == {"digits", SLOPED, INVERTED}


def test_auxiliary_tasks_are_taken_by_their_labels(members):
    pool = (
        "auxiliaries=[{dataset='digits-sloped', name='b', size=12}, {dataset='digits-parity', name='c', size=12},"
        " {dataset='digits-inverted', name='a', size=12}]"
    )
    made = members(pool, "runs=4", "auxiliary_runs=1")
    assert made.auxiliaries("digits") == ["a", "b", "c"]
    nodes = made.of("inter_training", TASK)
    assert nodes[0].theta == made.start(TASK)
    assert [node.theta.theta.task.dataset for node in nodes[1:]] == ["a", "b", "c"]


def test_each_dataset_is_an_auxiliary_task_of_the_others(members):
    made = members(
        "datasets=[{dataset='digits', size=12}, {dataset='digits-sloped', size=12}]",
        "auxiliaries=[{dataset='digits', name='digits, whole', size=12},"
        " {dataset='digits-sloped', name='sloped, whole', size=12}]",
    )
    assert made.auxiliaries("digits") == ["sloped, whole"]
    assert made.auxiliaries("digits-sloped") == ["digits, whole"]


def test_sequential_inter_training_goes_through_two_tasks_each_with_its_own_probe(members):
    made = members("runs=4")
    nodes = made.of("sequential", TASK)
    orders = []
    for h, node in enumerate(nodes):
        second = node.theta.theta
        first = second.theta.theta
        assert second.theta.head == made.start(second.task)
        assert first.theta == made.start(first.task)
        assert second.run == made.benchmark.runs_on(second.task.dataset)[h % 2].with_(collect="last")
        assert node.run.classifier_steps == 3
        orders.append((first.task.dataset, second.task.dataset))
    assert orders == [(INVERTED, SLOPED), (SLOPED, INVERTED)] * 2


def test_fusing_mixes_theta_pt_and_one_run_of_each_task(members):
    made = members("runs=3", "fusing_range=2.0")
    for h, (node, run) in enumerate(
        zip(made.of("fusing", TASK), made.benchmark.runs_on("digits"), strict=True)
    ):
        assert isinstance(node.theta, Interpolated)
        assert node.theta.coefficients == fusing_coefficients(3, run.seed, kappa_max=2.0)
        assert math.isclose(sum(node.theta.coefficients), 1)
        assert max(node.theta.coefficients) / min(node.theta.coefficients) < math.exp(2)
        _, one, other = node.theta.thetas
        assert (one.theta.task.dataset, other.theta.task.dataset) == (INVERTED, SLOPED)
        assert one.theta.run == made.benchmark.runs_on(INVERTED)[h % 2].with_(collect="last")
        assert node.run == run.with_(classifier_steps=3)  # frozen first, theta_pt being only a part


@pytest.mark.parametrize(
    ("protocol", "key", "shared"),
    [("reference", False, True), ("corrected", False, False), ("corrected", True, True)],
)
def test_the_reference_and_a_shared_probe_share_one_between_data_seeds(members, protocol, key, shared):
    made = members(f"protocol='{protocol}'", f"shared_probe={str(key).lower()}")
    probes = [made.start(TaskName("digits", "rotated_0", seed)) for seed in (0, 1)]
    assert (probes[0] == probes[1]) is shared
    assert probes[0].task.data_seed == 0
    assert made.start(TaskName("digits", "rotated_15")) != probes[0]
    assert {node.theta for node in made.of("fine_tuning", TaskName("digits", "rotated_0", 1))} == {probes[1]}
    pair = TaskName("digits", "rotated_0", 1, ("rotated_15",))
    assert made.start(pair).task == TaskName("digits", "rotated_0", 0 if shared else 1, ("rotated_15",))


@pytest.mark.parametrize("dataset", ["ColoredMNIST", "RotatedMNIST"])
def test_digits_that_a_data_seed_deals_anew_get_a_probe_for_each_under_the_reference(members, dataset):
    made = members(
        f"datasets=[{{dataset='{dataset}', seeds=[0, 1]}}]", "protocol='reference'", "shared_probe=false"
    )
    probes = [made.start(TaskName(dataset, "a", seed)) for seed in (0, 1)]
    assert [probe.task for probe in probes] == [TaskName(dataset, "a", 0), TaskName(dataset, "a", 1)]
    assert [probe.theta for probe in probes] == [Pretrained(dataset)] * 2


def test_every_family_has_as_many_members_as_runs(members):
    made = members("runs=4")
    for family, about in FAMILIES.items():
        nodes = made.of(family, TASK)
        assert len(nodes) == 4
        assert {node.run.collect for node in nodes} == {about.collect}
        assert all(node.task == TASK for node in nodes)


# Carried out


def featurizers_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one if not name.startswith("classifier."))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("protocol", "frozen"), [("reference", 4), ("corrected", 3)])
def test_the_featurizer_moves_after_the_frozen_steps_and_at_once_from_theta_pt(
    table, recipe_file, protocol, optimizer, frozen
):
    changes = [f"protocol='{protocol}'", f"run.optimizer='{optimizer}'", "run.learning_rate=1e-2"]
    made = Members(load_benchmark(recipe_file, changes)[0])
    own = Members(table.bench.benchmark)  # its starts are trained
    network, split = table.bench.start("digits").network, table.bench.split(TASK)

    def after(node, start, updates):
        run = node.run.with_(steps=updates, classifier_steps=min(node.run.classifier_steps, updates))
        fit = Trainer(network, loop=table.bench.loop, keep=("last",)).fit(start, split, run)
        return fit.weights["last"]

    for family in ("inter_training", "robust", "fusing"):
        node = made.of(family, TASK)[1]
        start = table.bench.weights(own.of(family, TASK)[1].theta)
        assert node.run.classifier_steps == frozen
        still, moved = after(node, start, frozen), after(node, start, frozen + 1)
        assert featurizers_equal(still, start)
        assert not torch.equal(still["classifier.weight"], start["classifier.weight"])
        assert not featurizers_equal(moved, start)
    first, start = made.of("inter_training", TASK)[0], table.bench.weights(own.start(TASK))
    assert not featurizers_equal(after(first, start, 1), start)


def test_a_fused_start_is_the_weighted_sum_by_hand(table):
    bench = table.bench
    for node in Members(bench.benchmark).of("fusing", TASK):
        start = bench.weights(node.theta)
        parts = [bench.weights(part) for part in node.theta.thetas]
        for name, value in start.items():
            by_hand = sum(
                share * part[name].double()
                for share, part in zip(node.theta.coefficients, parts, strict=True)
            )
            torch.testing.assert_close(value.double(), by_hand, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            start["classifier.weight"], parts[0]["classifier.weight"], rtol=1e-6, atol=1e-7
        )


def test_an_inter_trained_start_has_the_features_of_the_last_step_and_the_head_of_the_target(table):
    bench, made = table.bench, Members(table.bench.benchmark)
    head = bench.weights(made.start(TASK))
    for family, collect in (("inter_training", "last"), ("robust", "moving_average")):
        node = made.of(family, TASK)[1]
        start = bench.weights(node.theta)
        auxiliary = bench.weights(replace(node.theta.theta, run=node.theta.theta.run.with_(collect=collect)))
        assert featurizers_equal(start, auxiliary)
        assert torch.equal(start["classifier.weight"], head["classifier.weight"])
        assert not featurizers_equal(start, head)


def test_a_probe_has_the_features_of_theta_pt(table):
    bench = table.bench
    assert featurizers_equal(bench.weights(Members(bench.benchmark).start(TASK)), bench.start("digits").theta)


def test_a_uniform_average_is_the_mean_of_its_members(table):
    thetas = [table.bench.weights(node) for node in Members(table.bench.benchmark).of("fine_tuning", TASK)]
    soup = average(thetas)
    for name in soup:
        mean = sum(theta[name].double() for theta in thetas) / len(thetas)
        torch.testing.assert_close(soup[name].double(), mean, rtol=0, atol=1e-6)
