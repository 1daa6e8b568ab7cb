from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.domainbed import NotMade
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import Pretrained, TaskName, Trained, WithHead, fused
from mirepoix.objectives import CORAL, ERM, SAM
from mirepoix.runs import Run
from mirepoix.types import InputError

TASK = TaskName("digits", "rotated_0")


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_workbench_travels_and_finds_the_same_things(table):
    bench = table.bench
    again = pickle.loads(pickle.dumps(bench))
    assert again == bench
    assert again._known == {}
    for node in Members(bench.benchmark).of("fusing", TASK):
        assert again.key(node) == bench.key(node)
        assert same(again.weights(node), bench.weights(node))
    assert copy.deepcopy(bench) == bench


def test_a_training_is_kept_under_its_key(table):
    bench = table.bench
    for family in ("fine_tuning", "robust", "fusing"):
        for node in Members(bench.benchmark).of(family, TASK):
            assert bench.weights(node).path.parent.name == bench.key(node)
            assert bench.status(node) == "stored"
            assert bench.weights(node).path.stem == node.run.collect


def test_what_is_collected_has_one_key(table):
    members = Members(table.bench.benchmark)
    one, other = members.of("fine_tuning", TASK)[1], members.of("moving_average", TASK)[1]
    assert table.bench.key(one) == table.bench.key(other)
    assert not same(table.bench.weights(one), table.bench.weights(other))


def test_weights_of_expressions(table):
    bench = table.bench
    member, other = Members(bench.benchmark).of("fine_tuning", TASK)[:2]
    start = Pretrained("digits")
    assert same(bench.weights(start), bench.start("digits").theta)
    headed = bench.weights(WithHead(member, start))
    for name, value in headed.items():
        source = start if name.startswith("classifier.") else member
        assert torch.equal(value, bench.weights(source)[name])
    mixed = bench.weights(fused([member, other], [0.25, 0.75]))
    for name, value in mixed.items():
        by_hand = 0.25 * bench.weights(member)[name].double() + 0.75 * bench.weights(other)[name].double()
        torch.testing.assert_close(value.double(), by_hand, rtol=1e-6, atol=1e-7)
    assert bench.start_fingerprint(member) == fingerprint(bench.weights(member))


def test_the_status_of_a_training_and_of_what_waits_for_it(make_bench, tmp_path):
    bench = make_bench("run.steps=2", "probe.steps=1", store=tmp_path)
    node = Members(bench.benchmark).of("inter_training", TASK)[1]
    auxiliary = node.theta.theta
    assert [bench.status(each) for each in (node, auxiliary, auxiliary.theta)] == [
        "waiting",
        "waiting",
        "missing",
    ]
    with pytest.raises(NotMade, match="digits-inverted, data seed 0: not trained yet") as absent:
        bench.make(node)
    assert (absent.value.training, absent.value.diverged) == (auxiliary, False)
    with pytest.raises(NotMade, match="digits without rotated_0, data seed 0: not trained yet"):
        bench.weights(node.theta.head)
    bench.make(auxiliary.theta)
    assert [bench.status(each) for each in (node, auxiliary, auxiliary.theta)] == [
        "waiting",
        "missing",
        "stored",
    ]
    bench.make(auxiliary)
    bench.make(node.theta.head)
    assert bench.status(node) == "missing"
    made = bench.make(node)
    assert bench.status(node) == "stored"
    assert same(bench.weights(node), made)


def test_a_training_that_diverges_is_remembered_and_so_is_all_that_starts_there(make_bench, tmp_path):
    bench = make_bench("run.steps=2", "run.optimizer='sgd'", "probe.learning_rate=1e38", store=tmp_path)
    members = Members(bench.benchmark)
    probe, member = members.start(TASK), members.of("fine_tuning", TASK)[0]
    with pytest.raises(NotMade, match="digits without rotated_0, data seed 0: diverged") as first:
        bench.make(probe)
    assert first.value.diverged
    assert first.value.training == probe
    for each in (probe, member):
        assert bench.status(each) == "diverged"
        with pytest.raises(NotMade) as again:
            bench.weights(each)
        assert again.value.diverged
    made = len(bench.store.made)
    with pytest.raises(NotMade):
        bench.make(member)
    assert len(bench.store.made) == made


def test_the_trainer_is_what_the_recipe_says(make_bench):
    bench = make_bench("sharpness_radius=0.2", "keep=['best', 'ema']", "strategies=['sam_moving_average']")
    start = Pretrained("digits")
    run = bench.benchmark.base_run()
    kinds = {name: bench.trainer(Trained(start, TASK, run, name)) for name in ("erm", "sam", "coral")}
    assert isinstance(kinds["erm"].objective, ERM)
    assert isinstance(kinds["coral"].objective, CORAL)
    assert isinstance(kinds["sam"].objective, SAM)
    assert kinds["sam"].objective.rho == 0.2
    assert kinds["erm"].keep == ("best", "moving_average", "ema")
    assert kinds["erm"].network.classes == 10
    assert not kinds["erm"].watch_left_out


def test_the_reference_watches_the_left_out_domain_where_there_is_one(make_bench):
    bench = make_bench("protocol='reference'")
    run = bench.benchmark.base_run()
    assert bench.trainer(Trained(Pretrained("digits"), TASK, run)).watch_left_out
    sloped = TaskName("digits-sloped")
    assert not bench.trainer(Trained(Pretrained("digits-sloped"), sloped, run)).watch_left_out


def test_targets_are_those_named_or_all(make_bench):
    assert make_bench().targets("digits") == ["rotated_0", "rotated_75"]
    every = make_bench("datasets=[{dataset='digits', size=12}]")
    assert every.targets("digits") == [f"rotated_{angle}" for angle in (0, 15, 30, 45, 60, 75)]
    wrong = make_bench("datasets=[{dataset='digits', size=12, targets=['rotated_80']}]")
    with pytest.raises(InputError, match="got 'rotated_80'"):
        wrong.targets("digits")


def test_images_below_the_data_folder_need_one(make_bench):
    bench = make_bench("auxiliaries=[{dataset='folder', path='pictures', name='mine'}]")
    with pytest.raises(
        InputError, match="mine: its images are in 'pictures' below the folder that --data names"
    ):
        bench.task("mine")


def test_a_split_is_that_of_its_name(make_bench):
    bench = make_bench("datasets=[{dataset='digits', size=12, holdout=0.3}]")
    split = bench.split(TaskName("digits", "rotated_0", 2, ("rotated_15",)))
    assert (split.target, split.without, split.data_seed, split.holdout) == (
        "rotated_0",
        ("rotated_15",),
        2,
        0.3,
    )
    assert bench.split(TaskName("digits", "rotated_0", 2, ("rotated_15",))) is split
    assert len(bench.split(TaskName("digits-sloped")).train) == 2


def test_what_is_not_made_is_told_by_another_process_too():
    training = Trained(Pretrained("digits"), TASK, Run(steps=3))
    for diverged in (False, True):
        error = pickle.loads(pickle.dumps(NotMade(training, diverged)))
        assert isinstance(error, NotMade)
        assert (error.training, error.diverged) == (training, diverged)
        assert str(error) == str(NotMade(training, diverged))
