"""``mirepoix explain``: the verdict in the terminal, the page in a folder, and errors that name the file."""

import json

import numpy as np
import pytest
from tests.cli.conftest import call
from tests.evidence.explain_samples import apart, predictions

QUICK = ["--resamples", 100]


def write(folder, right, **options):
    """A file for each member."""
    folder.mkdir()
    sample = predictions(right, **options)
    for k, name in enumerate(sample.members):
        np.savez(folder / f"{name}.npz", logits=sample.logits[k].numpy(), labels=sample.labels.numpy())


@pytest.fixture
def own(cli, tmp_path):
    """Predictions of four members and their average in the current folder."""
    write(tmp_path / "work" / "ood", apart())
    write(tmp_path / "work" / "id", apart(), size=2.5)
    return cli


def test_a_finished_job_is_explained(finished, tmp_path):
    result = call("explain", "out", *QUICK)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("What to ship: ")
    assert lines[1].startswith("Trust it: ")
    assert lines[-1] == "Page: out/explanation/explanation.html"
    content = json.loads((tmp_path / "job" / "out" / "explanation" / "explanation.json").read_text())
    assert content["title"] == "small"
    assert [block["target"] for block in content["blocks"]] == ["a", "b", "c"]
    report = json.loads((tmp_path / "job" / "out" / "report.json").read_text())
    for block in content["blocks"]:
        for row, combine in (
            ("mean", "mean"),
            ("best", "best"),
            ("average", "average"),
            ("ensemble", "ensemble"),
        ):
            theirs = next(
                r
                for r in report["rows"]
                if r["target"] == block["target"]
                and r["combine"] == combine
                and r["strategy"] != "moving_average"
            )
            ours = next(r for r in block["rows"] if r["name"] == row)
            for side in ("id", "ood"):
                assert ours[side]["value"] == pytest.approx(theirs[f"{side}_accuracy"], abs=1e-6)
    assert all(block["weights"]["cosines"] for block in content["blocks"])


def test_own_files_are_explained(own):
    result = own("explain", "--predictions", "ood/*.npz", "--id", "id/*.npz", "-o", "page", *QUICK)
    assert result.code == 0, result.err
    assert "What to ship: Ship the average of the 4 members" in result.out
    assert "Trust it: yes. On OOD data it is 13.0 points better than run-0" in result.out
    assert "Page: page/explanation.html" in result.out


def test_json_is_the_file(own, tmp_path):
    result = own("explain", "--predictions", "ood/*.npz", "--json", *QUICK)
    assert result.code == 0, result.err
    folder = tmp_path / "work" / "explanation"
    assert json.loads(result.out) == json.loads((folder / "explanation.json").read_text())


def test_labels_may_stand_apart(cli, tmp_path):
    sample = predictions(apart())
    for k in range(2):
        np.save(tmp_path / "work" / f"m{k}.npy", sample.logits[k].numpy())
    np.save(tmp_path / "work" / "labels.npy", sample.labels.numpy())
    given = ["--predictions", "m0.npy", "--predictions", "m1.npy"]
    assert cli("explain", *given, "--labels", "labels.npy", *QUICK).code == 0
    result = cli("explain", *given, *QUICK)
    assert result.code == 2
    assert "--labels FILE" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the folder of a job, or files"),
        (["nowhere"], "there is no such folder"),
        (["id"], "there is no report.json"),
        (
            ["id", "--predictions", "ood/run-0.npz"],
            "expected the folder of a job or files of your own, got both",
        ),
        (["id", "--labels", "x.npy"], "go with files of your own"),
        (["--predictions", "ood/*.txt"], "it names none"),
        (["--predictions", "ood/run-0.npz", "--id", "id/run-1.npz"], "expected the same members"),
        (["--predictions", "ood/run-0.npz", "--resamples", 5], "at least 100"),
    ],
)
def test_what_a_person_can_mend_exits_with_two(own, arguments, message):
    result = own("explain", *arguments)
    assert result.code == 2
    assert message in result.err
