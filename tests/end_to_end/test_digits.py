"""The built-in job from nothing to report: what a newcomer sees first must also be true."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_built_in_job_shows_that_averaging_helps(tmp_path):
    command = [sys.executable, "-m", "mirepoix", "run", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert str(tmp_path / "out" / "report.html") in run.stdout.replace("\n", "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["rows"]) == 7 * 6
    assert all(row["status"] == "finished" for row in report["runs"])
    ood = {(row["strategy"], row["combine"]): row["ood_accuracy"] for row in report["averages"]}
    # Seeds are fixed; the margins are about half of what was seen.
    assert ood["diwa", "average"] > ood["fine_tuning", "mean"] + 0.01
    assert ood["diwa", "ensemble"] > ood["fine_tuning", "mean"] + 0.01
    for entry in report["why"]:
        assert entry["average_ensemble_disagreement"] < 0.1
        assert entry["ratio_error"]["ood"] > 0.1
