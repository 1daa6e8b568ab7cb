from __future__ import annotations

import collections
import pickle

import pytest
import torch

from mirepoix.cluster import Inline, LocalPool
from mirepoix.domainbed import Workbench, make_plan, measure, run_plan
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._run import _workbench
from tests.domainbed.conftest import TABLE, carry, listed

ONE = "datasets=[{dataset='digits', size=12, targets=['rotated_0']}]"
SHORT = (ONE, "run.steps=3", "probe.steps=2", "runs=2", "auxiliary_runs=1", "frozen_steps=1")


def folders(bench, kind="weights"):
    return sorted(path.name for path in (bench.store.path / kind).iterdir())


def test_every_distinct_run_is_trained_once_and_no_other(table):
    # per split: probe, 3 of DiWA, 2 of inter-training, 2 of the robust form, 3 of fusing; per task: probe and 2 runs
    assert len(table.plan.trainings) == 4 * (1 + 3 + 2 + 2 + 3) + 2 * (1 + 2)
    assert table.sweep.trained == len(table.plan.trainings) == 50
    assert (table.sweep.diverged, table.sweep.failed) == ([], {})
    keys = [table.bench.key(planned.node) for planned in table.plan.trainings]
    made = collections.Counter([*table.bench.store.made, *table.worker.store.made])
    assert set(made.values()) == {1}
    assert len(set(keys)) == 50
    assert set(keys) <= set(made)
    assert len(folders(table.bench)) == 50 + 1  # the pre-training


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
    assert again.plan.to_dict()["stored"] == 50
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
    (training, measuring) = sweep.failed
    assert training == "digits without rotated_0, data seed 0: fine-tuning, run 1"
    assert "no space left" in sweep.failed[training]
    assert measuring.startswith("measure digits without rotated_0")
    assert [cell.missing for cell in sweep.cells] == ["1 of 2 runs are not trained yet"]
    assert worker.store.path == bench.store.path


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
