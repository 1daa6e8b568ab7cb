"""Members of a sweep as files: the same bits as in the store, and what the other verbs need beside them."""

from pathlib import Path

import pytest
import torch

from mirepoix import Predictions, open_weights
from mirepoix.checkpoints import read_json
from mirepoix.cluster import Inline
from mirepoix.domainbed import Workbench, export, make_plan, run_plan
from mirepoix.domainbed._measure import Measured
from mirepoix.domainbed._nodes import TaskName
from mirepoix.types import InputError
from mirepoix.weights import average
from tests.domainbed.conftest import Carried
from tests.domainbed.test_evidence import RECIPE, workbench


def equal(a: object, b: object) -> bool:
    one, other = dict(a), dict(b)  # type: ignore[call-overload]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_members_average_and_predictions_are_those_of_the_store(table: Carried, tmp_path: Path) -> None:
    told: list[str] = []
    files = export(table.bench, tmp_path, note=told.append)
    assert told == [f"rotated_{angle}-seed-{seed}: 3 members" for angle in (0, 75) for seed in (0, 1)]
    assert sorted(files) == sorted(tmp_path.rglob("*.safetensors"))
    measured = Measured(table.bench, TaskName("digits", "rotated_0", 0))
    members = measured.gather("fine_tuning").members
    for number, member in enumerate(members):
        assert equal(
            open_weights(tmp_path / f"members/rotated_0-seed-0/run-{number}.safetensors"), member.theta
        )
        record = read_json(tmp_path / f"members/rotated_0-seed-0/run-{number}.json")
        assert (record["target"], record["data_seed"]) == ("rotated_0", 0)
        assert record["made_of"] == member.record["made_of"]
    uniform = average(member.theta for member in members)
    for part in ("validation", "test"):
        predictions = Predictions.load(tmp_path / f"predictions/rotated_0-seed-0-{part}.safetensors")
        assert predictions.members == ("run-0", "run-1", "run-2", "average")
        assert torch.equal(predictions.labels, measured.judge.labels(part))
        assert torch.equal(predictions.logits[0], measured.judge.logits(members[0].theta, part))
        assert torch.equal(
            predictions.logits[3], measured.judge.logits(measured.judge.refresh(uniform), part)
        )


def test_the_start_is_where_the_members_began(table: Carried, tmp_path: Path) -> None:
    export(table.bench, tmp_path)
    member = Measured(table.bench, TaskName("digits", "rotated_0", 0)).gather("fine_tuning").members[0]
    assert equal(
        open_weights(tmp_path / "starts/rotated_0-seed-0.safetensors"), table.bench.weights(member.node.theta)
    )


def test_weights_along_the_runs(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    bench = workbench(tmp_path, "strategies=['diwa']", "runs=2", "auxiliaries=[]")
    with Inline() as engine:
        run_plan(bench, make_plan(bench), engine)
    export(bench, tmp_path / "out", along=[4, 6])
    names = [f"run-{run} step {step}" for run in (0, 1) for step in (4, 6)]
    predictions = Predictions.load(tmp_path / "out/predictions/rotated_0-along-test.safetensors")
    assert predictions.members == tuple(names)
    judge = bench.judge(TaskName("digits", "rotated_0", 0))
    for name, logits in zip(names, predictions.logits, strict=True):
        theta = open_weights(tmp_path / f"out/along/rotated_0/{name}.safetensors")
        assert torch.equal(judge.logits(theta, "test"), logits)
    best = Measured(bench, TaskName("digits", "rotated_0", 0)).gather("fine_tuning").members[0]
    step = best.record["best_step"]
    export(bench, tmp_path / "out", along=[step])
    assert equal(open_weights(tmp_path / f"out/along/rotated_0/run-0 step {step}.safetensors"), best.theta)
    with pytest.raises(InputError, match=r"run 0 was checked at steps 0, .* not at 5"):
        export(bench, tmp_path / "out", along=[5])


def test_steps_that_were_not_kept_are_an_error(table: Carried, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='Add "snapshots" to `keep`'):
        export(table.bench, tmp_path, along=[2])


def test_an_unknown_family_is_refused(table: Carried, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="family: expected one of fine_tuning"):
        export(table.bench, tmp_path, family="fine-tuning")


def test_nothing_trained_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    bench: Workbench = workbench(tmp_path)
    with pytest.raises(InputError, match=r"no member of fine_tuning is trained\. Run the sweep first"):
        export(bench, tmp_path / "out")
    assert not (tmp_path / "out").exists()
