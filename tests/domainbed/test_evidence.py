from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.cluster import Inline
from mirepoix.domainbed._evidence import _doubling, _members_of_tasks, look_into_split
from mirepoix.domainbed._measure import Measured
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._plan import make_plan
from mirepoix.domainbed._run import run_plan
from mirepoix.domainbed._settings import load_benchmark
from mirepoix.domainbed._workbench import Workbench
from mirepoix.ensembles import average_logits
from mirepoix.experiment import Judge
from mirepoix.metrics import accuracy
from mirepoix.training import Trainer, snapshots
from mirepoix.types import InputError
from mirepoix.weights import average, interpolate

RECIPE = """
name = "tiny"
runs = 6
strategies = ["mean_member", "diwa", "ratatouille"]
auxiliary_runs = 2
frozen_steps = 2
keep = ["best", "last", "snapshots"]

[[datasets]]
dataset = "digits"
size = 12
targets = ["rotated_0"]

[[auxiliaries]]
dataset = "digits-inverted"
size = 12

[[auxiliaries]]
dataset = "digits-sloped"
size = 12

[network]
name = "mnist_cnn"
width = 8

[pretraining]
steps = 20
learning_rate = 3e-3
batch_size = 32

[probe]
steps = 8
learning_rate = 1e-2

[run]
steps = 8
learning_rate = 2e-3
batch_size = 8
check_every = 2

[space]
learning_rate = [1e-3, 3e-3]
weight_decay = [1e-4]
dropout = [0.0]

[loop]
threads = 1
"""
SUBSETS = 4
PLACE = ("digits", "rotated_0", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evidence")
    (path / "tiny.toml").write_text(RECIPE)
    return path


def workbench(folder: Path, *changes: str) -> Workbench:
    benchmark, path = load_benchmark(folder / "tiny.toml", changes)
    return Workbench(benchmark, path, str(folder / "store"), folder / "cache")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Workbench:
    """All trained."""
    threads = torch.get_num_threads()
    bench = workbench(folder)
    sweep = run_plan(bench, make_plan(bench), Inline())
    torch.set_num_threads(threads)
    assert not sweep.failed
    assert not sweep.diverged
    return bench


@pytest.fixture(scope="module")
def look(bench: Workbench) -> dict[str, Any]:
    return look_into_split(bench, *PLACE, subsets=SUBSETS)


def numbers(look: dict[str, Any], key: str) -> Any:
    return look["figures"][key]["numbers"]


def ood(measured: Measured, theta: Any) -> float:
    judge = measured.judge
    return float(accuracy(judge.logits(theta, "test"), judge.labels("test")))


@pytest.fixture(scope="module")
def measured(bench: Workbench) -> Measured:
    return Measured(bench, TaskName(*PLACE))


def test_everything_is_plain_and_complete(look: dict[str, Any]) -> None:
    assert json.loads(json.dumps(look, allow_nan=False)) == look
    assert (look["dataset"], look["target"], look["data_seed"], look["subsets"]) == (*PLACE, SUBSETS)
    assert {key for key, figure in look["figures"].items() if "numbers" in figure} == {
        "members",
        "diversity",
        "diversity_inter_training",
        "share",
        "tasks",
        "hypothesis_1",
        "hypothesis_2",
        "three",
    }
    assert look["notes"] == []


def test_the_cost_is_bounded_by_the_subsets(look: dict[str, Any]) -> None:
    assert 40 <= look["averages"] <= 65


def test_a_second_look_trains_and_predicts_nothing(
    folder: Path, look: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(Trainer, "fit", never)
    monkeypatch.setattr("mirepoix.experiment._judge.predict", never)
    assert look_into_split(workbench(folder), *PLACE, subsets=SUBSETS) == look


def test_the_curves_end_at_the_average_and_the_ensemble_of_all(
    look: dict[str, Any], measured: Measured
) -> None:
    thetas = [member.theta for member in measured.gather("fine_tuning").members]
    found = numbers(look, "members")
    assert [point["members"] for point in found["runs"]] == [1, 2, 4, 6]
    whole = measured.judge.refresh(average(thetas))
    assert found["runs"][-1]["mean"] == pytest.approx(ood(measured, whole))
    judge = measured.judge
    together = average_logits(torch.stack([judge.logits(theta, "test") for theta in thetas]))
    assert found["ensemble"][-1]["mean"] == pytest.approx(float(accuracy(together, judge.labels("test"))))


def test_snapshots_are_the_best_checks_of_run_0_on_id_validation(
    bench: Workbench, look: dict[str, Any], measured: Measured
) -> None:
    run0 = measured.gather("fine_tuning").members[0]
    node = replace(run0.node, run=run0.node.run.with_(collect="snapshots"))
    kept = snapshots(bench.weights(node))
    assert set(kept) == {check["step"] for check in run0.record["checks"]}
    assert [point["members"] for point in numbers(look, "members")["snapshots"]] == [1, 2, 4]  # of 5 checks
    one = look_into_split(bench, *PLACE, subsets=5)["figures"]["members"]["numbers"]["snapshots"][0]
    assert one["subsets"] == len(kept) == 5
    assert one["mean"] == pytest.approx(sum(ood(measured, theta) for theta in kept.values()) / 5)


def test_dots_are_subsets_and_every_line_has_its_size(look: dict[str, Any]) -> None:
    for key in ("diversity", "diversity_inter_training"):
        found = numbers(look, key)
        assert found["measure"] == "ratio_error"
        assert [size["members"] for size in found["sizes"]] == [2, 4]
        assert all(size["subsets"] + size["left_out"] == SUBSETS for size in found["sizes"])


def test_shares_run_from_plain_to_recycled_members_alone(look: dict[str, Any], measured: Measured) -> None:
    found = numbers(look, "share")
    assert [point["share"] for point in found["shares"]] == [0, 0.25, 0.5, 0.75, 1]
    recycled = [m.theta for m in measured.gather("inter_training").members if m.run % 3]  # 0 and 3: theta_pt
    assert len(recycled) == 4
    whole = measured.judge.refresh(average(recycled))
    assert found["shares"][-1]["mean"] == pytest.approx(ood(measured, whole))
    assert found["shares"][-1]["subsets"] == 1


def test_initialisations_are_each_auxiliary_task_and_theta_pt(look: dict[str, Any]) -> None:
    found = numbers(look, "tasks")
    assert found["groups"] == {"digits-inverted": 2, "digits-sloped": 2, "theta_pt": 6}
    assert found["members"] == 2
    assert [point["tasks"] for point in found["tasks"]] == [1, 2]
    assert all(point["too_small"] == [] for point in found["tasks"])


def test_hypothesis_1_is_about_featurizers_under_the_head_of_the_target(
    bench: Workbench, look: dict[str, Any], measured: Measured
) -> None:
    figure = look["figures"]["hypothesis_1"]
    assert figure["names"] == ["digits-inverted", "digits-sloped"]
    members = measured.gather("inter_training").members
    starts = [measured.judge.refresh(bench.weights(members[run].node.theta)) for run in (1, 2)]
    heads = [{name: theta[name] for name in theta if name.startswith("classifier.")} for theta in starts]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    for name, points in ((name, found["points"]) for name, found in figure["numbers"]["scores"].items()):
        assert [point["coefficients"][1] for point in points] == [0, 0.25, 0.5, 0.75, 1]
        for point in points:
            theta = interpolate(starts, point["coefficients"])
            if 1 not in point["coefficients"]:
                theta = measured.judge.refresh(theta)
            part = measured.judge.logits(theta, "validation")
            value = measured.judge.id_accuracy(part) if name == "ID" else ood(measured, theta)
            assert point["value"] == pytest.approx(value)


def test_hypothesis_2_and_three_are_about_members(look: dict[str, Any], measured: Measured) -> None:
    members = [member.theta for member in measured.gather("inter_training").members]
    two, three = look["figures"]["hypothesis_2"], look["figures"]["three"]
    assert two["names"] == ["digits-inverted", "digits-sloped"]
    assert three["names"] == ["digits-inverted", "digits-sloped", "theta_pt"]
    assert (two["numbers"]["ends"], three["numbers"]["ends"]) == (2, 3)
    points = two["numbers"]["scores"]["OOD"]["points"]
    assert [points[i]["value"] for i in (0, -1)] == pytest.approx([ood(measured, members[i]) for i in (1, 2)])
    points = three["numbers"]["scores"]["OOD"]["points"]
    pair = measured.judge.refresh(average(members[1:3]))
    ends = [ood(measured, pair), ood(measured, members[0])]
    assert [points[i]["value"] for i in (0, -1)] == pytest.approx(ends)


def test_averages_get_statistics_of_their_own_once_and_members_do_not(
    bench: Workbench, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed = []
    original = Judge.refresh

    def counted(judge: Judge, theta: Any) -> Any:
        refreshed.append(fingerprint(theta))
        return original(judge, theta)

    monkeypatch.setattr(Judge, "refresh", counted)
    found = look_into_split(bench, *PLACE, subsets=SUBSETS)
    families = [measured.gather(family).members for family in ("fine_tuning", "inter_training")]
    assert not {fingerprint(member.theta) for members in families for member in members} & set(refreshed)
    assert len(refreshed) == len(set(refreshed)) == found["averages"] + 2  # the ends of hypothesis 1


def test_members_that_are_not_trained_leave_their_figures_out(folder: Path, bench: Workbench) -> None:
    found = look_into_split(workbench(folder, "runs=8"), *PLACE, subsets=1)
    why = {key: figure["missing"] for key, figure in found["figures"].items()}
    assert len(why) == 8
    assert why["members"] == "fine-tuning: 2 of 8 runs are not trained yet"
    assert why["tasks"] == "inter-training: 2 of 8 runs are not trained yet"
    assert found["averages"] == 0


def test_a_family_that_is_in_no_row_is_not_looked_at(folder: Path, bench: Workbench) -> None:
    # "last" is kept for inter-training alone, and what is kept names a training in the store.
    kept = ('strategies=["diwa"]', 'keep=["best", "last", "snapshots"]')
    found = look_into_split(workbench(folder, *kept), *PLACE, subsets=1)
    assert {key for key, figure in found["figures"].items() if "numbers" in figure} == {
        "members",
        "diversity",
    }
    assert found["figures"]["share"]["missing"] == "no row of the recipe is about inter-training"


def test_few_members_say_what_would_be_needed(folder: Path, bench: Workbench) -> None:
    found = look_into_split(workbench(folder, "runs=2"), *PLACE, subsets=2)
    figures = found["figures"]
    assert "numbers" in figures["members"]
    assert numbers(found, "diversity")["sizes"][0]["subsets"] == 1
    assert figures["share"]["missing"] == "expected at least 2 members that start at an auxiliary task, got 1"
    assert figures["three"]["missing"] == "expected members of at least 3 initialisations, got 2"
    assert figures["hypothesis_2"]["names"] == ["digits-inverted", "theta_pt"]
    assert figures["tasks"]["missing"].endswith("got digits-inverted 1, theta_pt 2")


def test_snapshots_that_were_not_kept_are_a_note(folder: Path) -> None:
    look = _without_snapshots(folder)
    assert look["notes"] == ['no curve of one run: add "snapshots" to `keep` in the recipe']
    assert numbers(look, "members")["snapshots"] is None


def _without_snapshots(folder: Path) -> dict[str, Any]:
    bench = workbench(folder, "runs=2", 'keep=["best", "last"]', 'strategies=["diwa"]', "run.steps=2")
    run_plan(bench, make_plan(bench), Inline())
    return look_into_split(bench, *PLACE, subsets=1)


def test_subsets_are_at_least_one(bench: Workbench) -> None:
    with pytest.raises(InputError, match="subsets: expected at least 1, got 0"):
        look_into_split(bench, *PLACE, subsets=0)


@pytest.mark.parametrize(
    ("sizes", "members"),
    [
        ([2, 2, 6], 2),  # t = 1 and 2; with 3 members t = 2 and 3, with no start alone to compare with
        ([3, 3, 3], 3),
        ([1, 1, 1], None),
        ([1, 2], None),
        ([4], None),
        ([3, 3, 3, 3, 4, 4], 6),  # t = 2 to 6
    ],
)
def test_the_members_of_the_figure_of_tasks_make_the_most_points(
    sizes: list[int], members: int | None
) -> None:
    assert _members_of_tasks(sizes) == members


def test_sizes_double_up_to_all() -> None:
    assert _doubling(1, 6) == [1, 2, 4, 6]
    assert _doubling(2, 8) == [2, 4, 8]
    assert _doubling(2, 2) == [2]
