from __future__ import annotations

import pytest

from mirepoix.domainbed import forecast, make_plan
from mirepoix.domainbed._nodes import Pretrained, trainings
from mirepoix.domainbed._plan import PASSES, rehearse
from mirepoix.objectives._named import OBJECTIVES
from mirepoix.types import InputError
from tests.domainbed.conftest import listed

SEEDS = "datasets=[{dataset='digits', size=12, targets=['rotated_0', 'rotated_75'], seeds=[0, 1]}]"


def kinds(plan):
    """How many trainings of each kind, by their labels."""
    found = {}
    for planned in plan.trainings:
        kind = planned.label.split(": ")[1].split(", run")[0].split(" run ")[0].split(" (")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_the_number_of_trainings_is_that_of_distinct_runs(make_bench, shared):
    average = "diwa_dagger" if shared else "fine_tuning"  # a dagger needs one head for all data seeds
    rows = [
        *("mean_member", "wise", "diwa", "diwa_greedy", average, "moving_average", "swad_ensemble"),
        *("ratatouille", "robust_ratatouille", "fusing", "sequential_inter_training"),
        *("sam", "sam_moving_average", "diverse_objectives"),
    ]
    changes = ("runs=6", f"strategies={listed(rows)}", f"shared_probe={str(shared).lower()}")
    plan = make_plan(make_bench(SEEDS, *changes))
    splits, runs, tasks, of_task = 4, 6, 2, 2
    probes, count = (2, 154) if shared else (4, 156)  # one for each target, or for each target and data seed
    each = {
        "fine-tuning": runs,  # of seven rows, and all that is averaged along it
        "inter-training": runs - 2,  # runs 0 and 3 begin at theta_pt
        "robust": runs - 2,
        "fusing": runs,
        "sequential": runs,
        "sam": runs,  # of two rows
        "objectives": runs - 2,  # runs 0 and 3 are ERM
    }
    auxiliary = tasks * (
        1 + of_task
    )  # once for all targets and seeds; robust ones are averages along the same
    chains = 2  # of two orders and two runs, h mod 2 takes each with one run only
    assert len(plan.trainings) == probes + splits * sum(each.values()) + auxiliary + chains == count
    assert len({planned.node for planned in plan.trainings}) == count
    assert len({planned.label for planned in plan.trainings}) == count
    assert plan.asked == splits * runs * len(rows)
    assert len(plan.splits) == splits
    assert kinds(plan) == {
        "linear probe": probes + tasks,
        "fine-tuning": splits * runs,
        "auxiliary": tasks * of_task + chains,
        "inter-training": splits * 4,
        "robust inter-training": splits * 4,
        "fusing": splits * runs,
        "sequential inter-training": splits * runs,
        "SAM": splits * runs,
        "diverse objectives": splits * 4,
    }


@pytest.mark.parametrize("shared", [True, False])
def test_every_training_comes_after_those_it_needs_and_measuring_needs_all_of_its_rows(make_bench, shared):
    rows = "strategies=['ratatouille', 'sequential_inter_training', 'fusing']"
    plan = make_plan(make_bench(SEEDS, rows, f"shared_probe={str(shared).lower()}"))
    for place, planned in enumerate(plan.trainings):
        assert all(need < place for need in planned.needs)
        assert {plan.trainings[need].node for need in planned.needs} == set(trainings(planned.node.theta))
    for split in plan.splits:
        needed = [plan.trainings[need].node for need in split.needs]
        own = [node for node in needed if node.task.target == split.target]
        (probe,) = (node for node in own if node.theta == Pretrained("digits"))
        assert probe.task.data_seed == (0 if shared else split.data_seed)
        assert {node.task.data_seed for node in own if node != probe} == {split.data_seed}
        assert len(own) == 1 + 1 + 2 + 3 + 3  # probe, from theta_pt, ratatouille, sequential, fusing
        assert {node.task.dataset for node in needed} == {"digits", "digits-inverted", "digits-sloped"}


def test_rows_of_one_family_add_nothing(make_bench):
    few = make_plan(make_bench("strategies=['diwa']"))
    many = make_plan(
        make_bench("strategies=['diwa', 'wise', 'ensemble', 'swad', 'ema', 'moving_average/mean']")
    )
    assert [p.node for p in few.trainings] == [p.node for p in many.trainings]
    assert (few.asked, many.asked) == (6, 36)


@pytest.mark.parametrize(
    ("protocol", "shared", "probes"),
    [("corrected", False, 4), ("corrected", True, 2), ("reference", False, 2), ("reference", True, 2)],
)
def test_a_shared_probe_and_the_reference_train_one_for_all_data_seeds(make_bench, protocol, shared, probes):
    plan = make_plan(make_bench(SEEDS, f"protocol='{protocol}'", f"shared_probe={str(shared).lower()}"))
    assert kinds(plan) == {"linear probe": probes, "fine-tuning": 12}


@pytest.mark.parametrize(
    ("protocol", "shared", "probes"),
    [("corrected", False, 2), ("corrected", True, 1), ("reference", False, 1)],
)
def test_leaving_one_out_trains_each_pair_once_for_both_targets(make_bench, protocol, shared, probes):
    plan = make_plan(
        make_bench(
            SEEDS,
            f"protocol='{protocol}'",
            f"shared_probe={str(shared).lower()}",
            "selection=['leave-one-out', 'oracle']",
            "strategies=['sam', 'ensemble']",
        )
    )
    pairs = [planned.node for planned in plan.trainings if planned.node.task.without]
    # Of 6 domains, 5 pairs with one target and 5 with the other; both targets make one. Only SAM chooses a run.
    assert len({(node.task.target, node.task.without) for node in pairs}) == 9
    assert len(pairs) == 9 * (2 * 3 + probes)
    assert len(plan.trainings) - len(pairs) == 2 * (2 * (3 + 3) + probes)


def test_a_plan_says_what_it_is(make_bench):
    plan = make_plan(make_bench())
    values = plan.to_dict()
    assert (values["trainings"], values["stored"], values["to_train"], values["splits"]) == (8, 0, 8, 2)
    assert values["list"][0] == {
        "training": "digits without rotated_0, data seed 0: linear probe",
        "status": "missing",
    }
    assert values["list"][1]["status"] == "waiting"
    assert plan.waiting() == list(plan.trainings)


def test_the_longest_way_is_known_from_steps(make_bench):
    plan = make_plan(make_bench("strategies=['sam', 'inter_training']", "probe.steps=6"))
    work = {planned.label.split(": ")[1]: planned.work for planned in plan.trainings}
    assert work["linear probe"] == 6 / 3
    assert work["SAM, run 0"] == 16
    assert work["fine-tuning, run 0"] == 8
    assert work["inter-training, run 1"] == 8 - 3 * 2 / 3
    assert work["auxiliary run 1"] == 8


def test_objectives_cost_what_their_passes_cost(make_bench):
    assert set(PASSES) <= set(OBJECTIVES)
    rows = "strategies=['fishr', 'mldg', 'iga/average', 'sam']"
    plan = make_plan(make_bench(rows, "runs=1", "objective_options.fishr.penalty_anneal_iters=0"))
    work = {planned.label.split(": ")[1]: planned.work for planned in plan.trainings}
    assert work["Fishr, run 0"] == 8
    assert work["MLDG, run 0"] == work["SAM, run 0"] == 16
    assert work["IGA, run 0"] == 24


def test_every_criterion_is_tried_once_for_each_number_of_source_domains(make_bench, monkeypatch):
    rows = "strategies=['fine_tuning', 'coral', 'coral/average', 'sd', 'sam']"
    bench = make_bench(rows, "selection=['leave-one-out']", "space.batch_size=[3, 5]", SEEDS)
    made = make_plan(bench)
    tried = []
    monkeypatch.setattr(type(bench), "rehearse", lambda self, node: tried.append(node))
    rehearse(bench, made)
    found = [(node.objective, len(bench.split(node.task).train)) for node in tried]
    assert sorted(found) == [(name, n) for name in ("coral", "sam", "sd") for n in (4, 5)]
    assert {node.run.batch_size for node in tried} == {3}


def test_a_rehearsal_names_the_training_that_cannot_be(make_bench):
    rows = "strategies=['fine_tuning', 'eqrm']"
    parity = "datasets=[{dataset='digits-parity', size=12, targets=['left']}]"
    bench = make_bench(rows, parity, "auxiliaries=[]", "objective_options.eqrm.eqrm_burnin_iters=0")
    made = make_plan(bench)
    with pytest.raises(InputError, match="digits-parity without left, data seed 0: EQRM, run 0: EQRM"):
        rehearse(bench, made)
    able = make_bench("strategies=['coral', 'diwa']")
    rehearse(able, make_plan(able))
    assert {planned.status for planned in make_plan(able).waiting()} == {"missing", "waiting"}  # thrown away


def test_an_auxiliary_task_with_the_images_of_a_target_is_refused(make_bench, tmp_path):
    twin = "auxiliaries=[{dataset='digits', path='elsewhere', size=12, name='twin'}]"
    bench = make_bench(twin, "strategies=['ratatouille']", data=tmp_path)
    with pytest.raises(InputError, match="'twin' is the same images as the dataset 'digits'"):
        make_plan(bench)


def test_a_forecast_is_taken_from_what_is_stored_or_from_a_few_steps(table, make_bench):
    nothing = forecast(table.bench, make_plan(table.bench))
    assert (nothing.seconds, nothing.bytes) == (0, 0)
    bench = make_bench()
    made, told = make_plan(bench), []
    guess = forecast(bench, made, told.append)
    size = sum(v.numel() * v.element_size() for v in bench.start("digits").theta.values())
    assert guess.seconds > 0
    assert guess.bytes >= size * len(made.trainings)
    assert told
    probe = made.trainings[0].node
    bench.make(probe)
    again = forecast(bench, make_plan(bench), told.append)
    assert again.seconds > 0
    assert len(told) == 1  # nothing was timed


def test_a_member_that_never_leaves_the_classifier_is_no_probe_in_name(make_bench):
    plan = make_plan(make_bench("frozen_steps=100", "strategies=['inter_training']"))
    assert kinds(plan)["linear probe"] == 2 + 2
    assert kinds(plan)["inter-training"] == 2 * 2


def test_auxiliary_tasks_are_trained_on_once_for_all_datasets(make_bench):
    two = "datasets=[{dataset='digits', size=12, targets=['rotated_0']}, {dataset='digits-parity', size=12}]"
    plan = make_plan(make_bench(two, "strategies=['ratatouille']"))
    assert [(split.dataset, split.target) for split in plan.splits] == [
        ("digits", "rotated_0"),
        ("digits-parity", "left"),
        ("digits-parity", "right"),
    ]
    assert kinds(plan) == {
        "linear probe": 3 + 2,
        "auxiliary": 2,  # of three runs, one begins at each task
        "fine-tuning": 3,
        "inter-training": 3 * 2,
    }


@pytest.mark.parametrize("row", ["diwa_dagger", "diwa"])
def test_what_a_row_needs_is_in_the_plan_of_each_of_its_splits(make_bench, row):
    plan = make_plan(make_bench(SEEDS, f"strategies=['{row}']"))
    assert [len(split.needs) for split in plan.splits] == [4] * 4
    assert len(plan.trainings) == 2 + 4 * 3  # a probe for each target, runs for each split too
