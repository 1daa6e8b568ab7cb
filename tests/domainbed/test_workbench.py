from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from PIL import Image

from mirepoix.checkpoints import fingerprint
from mirepoix.domainbed import NotMade, Workbench, _workbench, make_plan, measure
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import Pretrained, TaskName, Trained, WithHead, fused
from mirepoix.objectives import CORAL, ERM, SAM
from mirepoix.runs import Run
from mirepoix.store import Store
from mirepoix.training import Trainer
from mirepoix.types import InputError
from tests.domainbed.conftest import carry

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
    assert (absent.value.training, absent.value.diverged) == (auxiliary.theta, False)  # what comes first
    with pytest.raises(NotMade, match="digits without rotated_0, data seed 0: not trained yet"):
        bench.weights(node.theta.head)
    bench.make(auxiliary.theta)
    with pytest.raises(NotMade, match="digits-inverted, data seed 0: not trained yet") as absent:
        bench.make(node)
    assert (absent.value.training, absent.value.diverged) == (auxiliary, False)
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


def test_a_criterion_is_told_of_the_network_and_of_its_own_source_domains(make_bench):
    options = "objective_options.fishr={ema=0.5, lambda_=7.0, penalty_anneal_iters=0}"
    bench = make_bench("strategies=['fishr']", options)
    run = bench.benchmark.base_run()

    def made(name, task=TASK, options=()):
        return bench.trainer(Trained(Pretrained("digits"), task, run, name, options)).objective

    one, fewer = made("fishr"), made("fishr", TaskName("digits", "rotated_0", 0, ("rotated_75",)))
    assert (one.configuration()["domains"], fewer.configuration()["domains"]) == (5, 4)
    assert (one.ema, one.lambda_) == (0.5, 7.0)
    drawn = made("fishr", options=(("lambda_", 3.0),))
    assert (drawn.ema, drawn.lambda_) == (0.5, 3.0)
    assert made("selfreg").configuration()["features"] == bench.start("digits").network.build().feature_size
    assert made("sam", options=(("rho", 0.01),)).rho == 0.01
    featurizer = {
        name.removeprefix("featurizer."): value
        for name, value in bench.start("digits").theta.items()
        if name.startswith("featurizer.")
    }
    assert same(made("adrmx").featurizer.state_dict(), featurizer)  # a second one begins with these weights


def test_objectives_tell_trainings_apart_and_leave_the_others_where_they_were(make_bench):
    bench = make_bench("objectives=['fishr', 'coral', 'sam']", "search_objectives=true")
    plain = make_bench()
    run, start = bench.benchmark.base_run(), Pretrained("digits")
    nodes = [
        *(Trained(start, TASK, run, name) for name in ("erm", "coral", "sam", "fishr")),
        Trained(start, TASK, run, "fishr", (("ema", 0.5),)),
    ]
    keys = [bench.key(node) for node in nodes]
    assert len(set(keys)) == 5
    assert [plain.key(node) for node in nodes] == keys
    made_of = bench.trainer(nodes[0]).made_of()
    assert made_of == bench.trainer(Trained(start, TASK, run)).made_of()
    assert made_of["objective"] == Trainer(bench.start("digits").network).made_of()["objective"]


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
    needed = "the recipe's dataset is 'folder': name the folder of its images with --data DIR"
    with pytest.raises(InputError, match=needed):
        bench.task("mine")


def test_images_are_read_from_the_path_below_the_data_folder(make_bench, tmp_path):
    for domain, red in (("day", 50), ("night", 200)):
        for label in ("cat", "dog"):
            folder = tmp_path / "pictures" / domain / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8), (red, number, 0)).save(folder / f"{number}.png")
    table = "auxiliaries=[{dataset='folder', path='pictures', name='mine', size=8}]"
    task = make_bench(table, data=tmp_path).task("mine")
    assert task.domain_names == ("day", "night")
    assert [len(domain) for domain in task.domains] == [4, 4]


def test_a_damaged_file_is_not_made_and_measuring_trains_nothing(make_bench, tmp_path):
    bench = make_bench("run.steps=2", "probe.steps=1", "strategies=['diwa']", store=tmp_path)
    members = Members(bench.benchmark)
    probe, node = members.start(TASK), members.of("fine_tuning", TASK)[1]
    bench.make(probe)
    file = bench.make(node).path
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = pickle.loads(pickle.dumps(bench))
    with pytest.raises(NotMade, match="digits without rotated_0, data seed 0: not trained yet") as absent:
        again.weights(node)
    assert (absent.value.training, absent.value.diverged) == (node, False)
    cells = measure(again, make_plan(again))
    assert {cell.missing for cell in cells} == {"3 of 3 runs are not trained yet"}
    assert again.store.made == []
    assert not file.exists()  # it was set aside, so that the next plan has it made
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    assert again.status(node) == "missing"
    assert same(again.make(node), bench.weights(node))  # trained anew
    assert again.store.made == [again.key(node)]


# What is remembered


@pytest.fixture
def counted(monkeypatch):
    """The fingerprints that were computed."""
    found = []

    def count(theta):
        found.append(fingerprint(theta))
        return found[-1]

    monkeypatch.setattr(_workbench, "fingerprint", count)
    return found


def test_a_second_plan_reads_no_weights(make_bench, tmp_path, counted, monkeypatch):
    bench = make_bench("run.steps=2", "probe.steps=1", "strategies=['ratatouille', 'fusing']", store=tmp_path)
    carry(bench)
    notes = sorted((bench.cache / "fingerprints").iterdir())
    computed = {note.read_text() for note in notes}
    assert computed >= set(counted)
    assert len(set(counted)) == len(counted) > 1  # each start once
    first = make_plan(bench)
    again, read, find = pickle.loads(pickle.dumps(bench)), [], Store.find
    counted.clear()
    monkeypatch.setattr(Store, "find", lambda store, kind, key: read.append(key) or find(store, kind, key))
    plan = make_plan(again)
    assert plan == first
    assert plan.waiting() == []
    assert counted == []
    assert len(set(read)) == 1  # the pre-training
    assert not set(read) & {again.key(planned.node) for planned in plan.trainings}


def test_a_fingerprint_is_kept_under_what_it_is_made_of(make_bench, tmp_path, counted):
    bench = make_bench("run.steps=2", "probe.steps=1", store=tmp_path)
    members = Members(bench.benchmark)
    probe, (one, other, _) = members.start(TASK), members.of("fine_tuning", TASK)
    for node in (probe, one, other):
        bench.make(node)
    again = pickle.loads(pickle.dumps(bench))
    nodes = [
        *(probe, one, other, dataclasses.replace(one, run=one.run.with_(collect="last"))),
        *(WithHead(one, probe), WithHead(one, other), WithHead(other, one)),
        *(
            fused([one, other], [0.5, 0.5]),
            fused([one, other], [0.25, 0.75]),
            fused([other, one], [0.25, 0.75]),
        ),
    ]
    assert len({again._made_of(node) for node in nodes}) == len(nodes)
    for node in nodes:
        assert again.start_fingerprint(node) == fingerprint(bench.weights(node))
        assert (again.cache / "fingerprints" / again._made_of(node)).read_text() == fingerprint(
            bench.weights(node)
        )
    counted.clear()
    third = pickle.loads(pickle.dumps(bench))
    assert [third.start_fingerprint(node) for node in nodes] == [again.start_fingerprint(n) for n in nodes]
    assert counted == []
    note = third.cache / "fingerprints" / third._made_of(one)
    note.write_text("cut off")  # by a full disk: it is made again
    fourth = pickle.loads(pickle.dumps(bench))
    assert fourth.start_fingerprint(one) == note.read_text() == fingerprint(bench.weights(one))
    assert len(counted) == 1


def test_while_a_plan_is_made_each_training_is_looked_at_once(make_bench, tmp_path, monkeypatch):
    bench = make_bench("run.steps=2", "probe.steps=1", store=tmp_path)
    probe = Members(bench.benchmark).start(TASK)
    looked = []
    look = Workbench._status
    monkeypatch.setattr(Workbench, "_status", lambda self, node: looked.append(node) or look(self, node))
    with bench.planning():
        assert [bench.status(probe) for _ in range(3)] == ["missing"] * 3
        bench.make(probe)
        assert bench.status(probe) == "missing"  # as when the plan began
    assert looked == [probe]
    assert bench.status(probe) == "stored"
    with pytest.raises(InputError, match="got 'rotated_80'"), bench.planning():  # a plan that is broken off
        bench.split(TaskName("digits", "rotated_80"))
    looked.clear()
    assert [bench.status(probe) for _ in range(2)] == ["stored"] * 2
    assert looked == [probe] * 2
    looked.clear()
    plan = make_plan(bench)
    assert len(looked) == len(set(looked)) == len(plan.trainings)


def test_networks_and_weights_are_let_go_of_and_found_again(table):
    bench = pickle.loads(pickle.dumps(table.bench))
    node = Members(bench.benchmark).of("fine_tuning", TASK)[0]
    before, judge, start = bench.weights(node), bench.judge(TASK), bench.start("digits")
    assert bench.weights(node) is before
    assert bench.judge(TASK) is judge
    split, key = bench.split(TASK), bench.start_fingerprint(node)
    bench.forget()
    assert {kind for kind, *_ in bench._known} == {"task", "split", "start", "fingerprint"}
    assert bench.start("digits") is start
    assert bench.split(TASK) is split
    assert bench.start_fingerprint(node) == key
    assert bench.weights(node) is not before
    assert same(bench.weights(node), before)
    assert bench.judge(TASK) is not judge


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
