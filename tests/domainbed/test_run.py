from __future__ import annotations

import collections
import pickle
import re

import pytest
import torch

from mirepoix.cluster import Inline, LocalPool
from mirepoix.domainbed import Workbench, _run, make_plan, measure, run_plan
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._run import _workbench, train_one
from mirepoix.objectives._spaces import draw_options
from mirepoix.types import InputError
from tests.domainbed.conftest import TABLE, carry, listed

INVERTED = "digits-inverted, data seed 0"
ONE = "datasets=[{dataset='digits', size=12, targets=['rotated_0']}]"
SHORT = (ONE, "run.steps=3", "probe.steps=2", "runs=2", "auxiliary_runs=1", "frozen_steps=1")


def folders(bench, kind="weights"):
    return sorted(path.name for path in (bench.store.path / kind).iterdir())


def test_every_distinct_run_is_trained_once_and_no_other(table):
    # per target: probe; per split: 3 of DiWA, 2 of inter-training, 2 of the robust form, 3 of fusing;
    # per task: probe and 2 runs
    assert len(table.plan.trainings) == 2 + 4 * (3 + 2 + 2 + 3) + 2 * (1 + 2)
    assert table.sweep.trained == len(table.plan.trainings) == 48
    assert (table.sweep.diverged, table.sweep.failed) == ([], {})
    keys = [table.bench.key(planned.node) for planned in table.plan.trainings]
    made = collections.Counter([*table.bench.store.made, *table.worker.store.made])
    assert set(made.values()) == {1}
    assert len(set(keys)) == 48
    assert set(keys) <= set(made)
    assert len(folders(table.bench)) == 48 + 1  # the pre-training


def test_all_cells_are_there(table):
    assert all(cell.missing is None for cell in table.sweep.cells)
    places = {(c.row, c.selection, c.target, c.data_seed) for c in table.sweep.cells}
    per_seed, methods = [row for row in TABLE if row != "diwa_dagger"], ("training-domain", "oracle")
    assert len(places) == len(table.sweep.cells) == len(methods) * 2 * (2 * len(per_seed) + 1)
    assert list(dict.fromkeys(cell.row for cell in table.sweep.cells)) == list(TABLE)
    stored = {f"weights/{name}" for name in folders(table.bench)}
    assert {source for cell in table.sweep.cells for source in cell.sources} <= stored


def test_a_second_time_nothing_is_trained_and_nothing_changes(table):
    before = folders(table.bench), folders(table.bench, "predictions")
    again = carry(pickle.loads(pickle.dumps(table.bench)))
    assert again.plan.waiting() == []
    assert again.plan.to_dict()["stored"] == 48
    assert again.sweep.trained == 0
    assert again.sweep.cells == table.sweep.cells
    assert measure(again.bench, again.plan) == table.sweep.cells
    assert (folders(table.bench), folders(table.bench, "predictions")) == before
    assert again.bench.store.made == []


def test_another_row_trains_only_what_is_new(make_bench, tmp_path):
    first = carry(make_bench(*SHORT, "strategies=['diwa']", store=tmp_path))
    assert first.sweep.trained == 1 + 2
    rows = ("diwa", "ensemble", "swad", "moving_average", "wise", "ratatouille")
    second = carry(make_bench(*SHORT, f"strategies={listed(rows)}", store=tmp_path))
    assert second.sweep.trained == 1 + 2  # run 1 from the first task, with its probe and its one run
    third = carry(make_bench(*SHORT, f"strategies={listed((*rows, 'sam', 'fusing'))}", store=tmp_path))
    assert third.sweep.trained == 2 + 2 + 2  # SAM, fusing, and the other task
    fourth = carry(make_bench(*SHORT, "strategies=['diwa']", "runs=3", store=tmp_path))
    assert fourth.sweep.trained == 1
    assert first.sweep.cells[0] == next(cell for cell in third.sweep.cells if cell.row == "diwa")


def test_objectives_take_turns_and_have_rows_of_their_own(make_bench, tmp_path):
    carried = carry(
        make_bench(
            *SHORT,
            "runs=3",
            "objectives=['fishr', 'coral', 'sam']",
            "objective_options.fishr={penalty_anneal_iters=1, ema=0.5}",
            "search_objectives=true",
            "strategies=['diverse_objectives', 'coral', 'fine_tuning']",
            store=tmp_path,
        )
    )
    assert [cell.missing for cell in carried.sweep.cells] == [None] * 3
    # A probe, three in turn, three by CORAL of which one has its turn, three by the risk.
    assert len(carried.plan.trainings) == 1 + 3 + (3 - 1) + 3
    task = TaskName("digits", "rotated_0")
    turns = [carried.bench.weights(node) for node in Members(carried.bench.benchmark).of("objectives", task)]
    made = [theta.record["made_of"]["train"]["objective"] for theta in turns]
    assert [each["name"].rpartition(".")[2] for each in made] == ["Fishr", "CORAL", "SAM"]
    assert (made[0]["penalty_anneal_iters"], made[0]["ema"], made[0]["domains"]) == (1, 0.5, 5)
    assert made[1]["mmd_gamma"] == draw_options("coral", 1)["mmd_gamma"]
    assert made[2]["rho"] == draw_options("sam", 2)["rho"]
    (soup,) = (cell for cell in carried.sweep.cells if cell.row == "diverse_objectives")
    assert len(soup.sources) == 3


def test_a_row_whose_objective_cannot_be_made_leaves_the_others_their_numbers(
    make_bench, tmp_path, monkeypatch
):
    from mirepoix.domainbed import _workbench

    def refused(start, split, name, options):
        if name == "coral":
            raise InputError("objective: CORAL needs something else.")
        return objective_for(start, split, name, options)

    objective_for = _workbench.objective_for
    monkeypatch.setattr(_workbench, "objective_for", refused)
    bench = make_bench(*SHORT, "strategies=['fine_tuning', 'coral']", "auxiliaries=[]", store=tmp_path)
    plan = make_plan(bench)
    with Inline() as engine:
        sweep = run_plan(bench, plan, engine)
    why = "2 of 2 runs cannot be trained: CORAL needs something else."
    missing = {cell.row: cell.missing for cell in sweep.cells}
    assert missing["fine_tuning"] is None
    assert missing["coral"].startswith(why)
    assert {label.split(": ")[1] for label in sweep.failed} == {"CORAL, run 0", "CORAL, run 1"}
    assert {cell.row: cell.missing for cell in measure(bench, plan)} == {"fine_tuning": None, "coral": why}


def test_a_diverged_run_is_left_out_and_named(make_bench, tmp_path):
    rows = ("diwa", "mean_member", "fine_tuning", "diwa_greedy", "diwa_dagger")
    sweep = carry(
        make_bench(
            ONE,
            "run.optimizer='sgd'",
            "run.learning_rate=1e-2",
            "space.learning_rate=[1e6]",
            "run.steps=5",
            "runs=2",
            f"strategies={listed(rows)}",
            "selection=['training-domain', 'oracle']",
            store=tmp_path,
        )
    ).sweep
    assert sweep.diverged == ["digits without rotated_0, data seed 0: fine-tuning, run 1"]
    assert sweep.trained == 2
    assert sweep.failed == {}
    for cell in sweep.cells:
        assert cell.missing is None
        assert cell.members == len(cell.sources) == 1
        expected = {"0": [1]} if cell.row == "diwa_dagger" else [1]
        assert cell.choice["diverged"] == expected
    assert len({cell.whole for cell in sweep.cells if cell.selection == "training-domain"}) == 1


def test_a_diverged_probe_leaves_cells_that_say_why(make_bench, tmp_path):
    result = carry(
        make_bench(
            *SHORT,
            "run.optimizer='sgd'",
            "probe.learning_rate=1e38",
            "probe.steps=4",
            "strategies=['diwa', 'diwa_dagger', 'ratatouille']",
            store=tmp_path,
        )
    )
    assert result.sweep.diverged[0] == "digits without rotated_0, data seed 0: linear probe"
    assert not [
        label for label in result.sweep.diverged if "run" in label and "without" in label
    ]  # none was begun
    reasons = {cell.row: cell.missing for cell in result.sweep.cells}
    all_diverged = "all 2 runs diverged"
    assert reasons == {
        "diwa": all_diverged,
        "diwa_dagger": f"data seed 0: {all_diverged}",
        "ratatouille": all_diverged,
    }
    again = make_plan(result.bench)
    assert again.waiting() == []
    statuses = {planned.status for planned in again.trainings if planned.node.task.target}
    assert statuses == {"diverged"}


def test_a_run_diverged_in_a_pair_is_no_candidate_of_leaving_one_out_and_is_named(left_one_out, monkeypatch):
    from mirepoix.domainbed import _measure

    gather = _measure.Measured.gather

    def lossy(self, family, task=None, **options):
        found = gather(self, family, task, **options)
        if task is None or self.name.target != "rotated_30":
            return found
        return _measure.Gathered(tuple(m for m in found.members if m.run != 1), (1,), None)

    monkeypatch.setattr(_measure.Measured, "gather", lossy)
    cells = _measure.cells_of_split(
        left_one_out.bench, "digits", "rotated_0", 0, left_one_out.bench.benchmark.rows()[:2]
    )
    assert [cell.choice["run"] for cell in cells] == [0, 0]
    assert [cell.choice["diverged"] for cell in cells] == [[1], [1]]


def test_figures_are_of_the_first_data_seed(make_bench, tmp_path):
    seeds = "datasets=[{dataset='digits', size=12, targets=['rotated_0'], seeds=[1, 0]}]"
    bench = make_bench(*SHORT, seeds, "figures=true", "subsets=1", "strategies=['diwa']", store=tmp_path)
    sweep = carry(bench).sweep
    assert len(sweep.evidence) == 1
    assert all(cell.missing is None for cell in sweep.cells)


def test_before_and_after_an_interruption(make_bench, tmp_path):
    class Enough(Exception):
        pass

    bench = make_bench(*SHORT, "strategies=['diwa', 'mean_member']", store=tmp_path)
    plan = make_plan(bench)
    assert {cell.missing for cell in measure(bench, plan)} == {"2 of 2 runs are not trained yet"}

    def stop(event):
        if event.kind == "done" and event.done == 2:
            raise Enough

    with pytest.raises(Enough), Inline() as engine:
        run_plan(bench, plan, engine, stop)
    assert {cell.missing for cell in measure(bench, plan)} == {"1 of 2 runs are not trained yet"}
    rest = carry(bench)
    assert rest.sweep.trained == 1
    assert all(cell.missing is None for cell in rest.sweep.cells)


def test_a_failure_is_told_and_the_rest_goes_on(make_bench, tmp_path, monkeypatch):
    bench = make_bench(*SHORT, "strategies=['diwa']", store=tmp_path)
    plan, worker = make_plan(bench), _workbench(pickle.dumps(bench))
    broken = Members(bench.benchmark).of("fine_tuning", TaskName("digits", "rotated_0"))[1]
    make = Workbench.make

    def fail(self, node, **options):
        if node == broken.training():
            raise OSError("no space left")
        return make(self, node, **options)

    monkeypatch.setattr(Workbench, "make", fail)
    with Inline() as engine:
        sweep = run_plan(bench, plan, engine)
    assert sweep.trained == 2
    (training,) = sweep.failed  # measuring is carried out all the same
    assert training == "digits without rotated_0, data seed 0: fine-tuning, run 1"
    assert "no space left" in sweep.failed[training]
    (cell,) = sweep.cells
    assert cell.missing.startswith(
        "1 of 2 runs are not trained yet; digits without rotated_0, data seed 0: fine-tuning"
    )
    assert cell.missing.endswith("run 1 failed: OSError: no space left")
    assert worker.store.path == bench.store.path


def test_what_a_failure_leaves_is_measured_on_the_engine_and_what_it_stops_is_named(
    make_bench, tmp_path, monkeypatch
):
    seeds = "datasets=[{dataset='digits', size=12, targets=['rotated_0'], seeds=[0, 1]}]"
    rows = "strategies=['diwa', 'ratatouille', 'diwa_dagger']"
    bench = make_bench(*SHORT, seeds, rows, "figures=true", "subsets=1", store=tmp_path)
    plan = make_plan(bench)
    (broken,) = (each.node for each in plan.trainings if each.label == f"{INVERTED}: auxiliary run 0")
    make = Workbench.make

    def fail(self, node, **options):
        if node == broken:
            raise OSError("no space left")
        return make(self, node, **options)

    monkeypatch.setattr(Workbench, "make", fail)
    submitted, events = [], []

    class Watched(Inline):
        def submit(self, function, /, *arguments):
            submitted.append(function.__name__)
            return super().submit(function, *arguments)

    with Watched() as engine:
        sweep = run_plan(bench, plan, engine, events.append)
    first, second = (f"digits without rotated_0, data seed {seed}" for seed in (0, 1))
    figures = f"figures of {first}"
    assert set(sweep.failed) == {
        f"{INVERTED}: auxiliary run 0",
        *(f"{split}: inter-training, run 1" for split in (first, second)),
        figures,
    }
    for skipped in (f"{first}: inter-training, run 1", figures):
        assert sweep.failed[skipped].startswith(f"it needs '{INVERTED}: auxiliary run 0', which failed: ")
    assert sweep.evidence == []
    assert sweep.trained == len(plan.trainings) - 3
    assert submitted.count("measure_split") == 2
    assert submitted.count("measure_seeds") == 1
    measured = [event.name for event in events if event.kind == "done" and event.name.startswith("measure ")]
    assert sorted(measured) == [
        f"measure digits without rotated_0, data seed {seed}" for seed in (0, 1, "all")
    ]
    missing = {(cell.row, cell.data_seed): cell.missing for cell in sweep.cells}
    why = f"{INVERTED}: auxiliary run 0 failed: OSError: no space left"
    one = f"1 of 2 runs are not trained yet; {why}"
    assert missing == {
        ("diwa", 0): None,
        ("diwa", 1): None,
        ("ratatouille", 0): one,
        ("ratatouille", 1): one,
        ("diwa_dagger", None): None,
    }
    assert [cell.whole for cell in sweep.cells] == [cell.whole for cell in measure(bench, plan)]


def test_cells_whose_measuring_fails_say_why(make_bench, tmp_path, monkeypatch):
    rows = ("diwa", "diwa_dagger", "ensemble")
    bench = make_bench(
        *SHORT,
        f"strategies={listed(rows)}",
        "selection=['training-domain', 'oracle']",
        store=tmp_path,
    )

    def fail(*arguments):
        raise RuntimeError("the worker has no memory left")

    monkeypatch.setattr(_run, "cells_of_split", fail)
    plan = make_plan(bench)
    with Inline() as engine:
        sweep = run_plan(bench, plan, engine)
    why = "RuntimeError: the worker has no memory left"
    assert sweep.failed == {"measure digits without rotated_0, data seed 0": why}
    assert sweep.trained == 3
    assert [(cell.row, cell.selection, cell.data_seed) for cell in sweep.cells] == [
        (row, selection, None if row == "diwa_dagger" else 0)
        for row in rows
        for selection in ("training-domain", "oracle")
    ]
    for cell in sweep.cells:
        assert (cell.dataset, cell.target) == ("digits", "rotated_0")
        if cell.row == "diwa_dagger":
            assert cell.missing is None
            assert cell.whole is not None
        else:
            assert cell.missing == f"measuring failed: {why}"
            assert (cell.whole, cell.part) == (None, None)


def test_what_another_worker_made_meanwhile_is_found_and_not_counted(make_bench, tmp_path):
    bench = make_bench(*SHORT, "strategies=['diwa']", store=tmp_path)
    plan = make_plan(bench)
    again = pickle.loads(pickle.dumps(bench))
    for planned in plan.trainings[:2]:
        again.make(planned.node)
    with Inline() as engine:
        sweep = run_plan(bench, plan, engine)
    assert len(plan.waiting()) == 3
    assert sweep.trained == 1
    pickled = pickle.dumps(bench)
    assert [train_one(pickled, planned.node) for planned in plan.trainings] == ["found"] * 3


def test_a_start_that_is_not_in_the_store_of_a_worker_asks_for_one_store(make_bench, tmp_path):
    bench = make_bench(*SHORT, "strategies=['diwa']", store=tmp_path)
    member = Members(bench.benchmark).of("fine_tuning", TaskName("digits", "rotated_0"))[1]
    place = re.escape(bench.store_place)
    with pytest.raises(
        InputError, match=rf"not in the store at {place} on this .*name it with --store"
    ) as error:
        train_one(pickle.dumps(bench), member)
    assert str(error.value).startswith("digits without rotated_0, data seed 0: the weights it starts from")


@pytest.mark.slow
def test_processes_give_the_same_bits_as_this_one(make_bench, tmp_path):
    rows = ("diwa", "ratatouille", "sam", "diwa_dagger")
    benches = [make_bench(*SHORT, f"strategies={listed(rows)}", store=tmp_path / name) for name in "ab"]
    plan = make_plan(benches[1])
    here = carry(benches[0])
    with LocalPool(2) as engine:
        there = run_plan(benches[1], plan, engine)
    assert there.failed == {}
    assert there.trained == here.sweep.trained
    assert there.cells == here.sweep.cells
    assert folders(benches[0]) == folders(benches[1])
    for planned in plan.trainings:
        one, other = (bench.weights(planned.node) for bench in benches)
        assert all(torch.equal(one[name], other[name]) for name in one)
