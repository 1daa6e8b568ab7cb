"""A comparison that is killed and started again ends in the same numbers and weights, and makes nothing twice."""

import json
import random
import signal
import subprocess
import sys

import pytest

from tests.end_to_end.test_kill import finished_results, results

RECIPE = """
name = "killed"
members = 3
shared_head = true
[data]
dataset = "digits"
size = 8
targets = ["rotated_0"]
seeds = [0]
[network]
name = "mnist_cnn"
width = 8
[pretraining]
steps = 10
[run]
steps = 25
batch_size = 8
check_every = 10
[cycle]
steps = 15
[loop]
save_every = 0.05
[[systems]]
name = "SSE"
kind = "snapshot"
[[systems]]
name = "Star"
kind = "star"
later = { name = "prediction_repulsion", alpha = 0.1 }
[[systems]]
name = "DICE"
kind = "joint"
members = 2
objective = "dice"
"""

WITH_CLOCKS = ("report.json", "report.md", "report.html")


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_while_it_trains_it_ends_in_the_same_bits(tmp_path, kills):
    (tmp_path / "killed.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "mirepoix", "run", "killed.toml", "--out"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    expected = results(tmp_path / "whole")
    out, moments = tmp_path / "out", random.Random(0)
    before, left, finished = {}, kills, False
    for _ in range(4 * kills + 2):
        process = subprocess.Popen(
            [*command, "out"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        if left:
            for line in process.stderr:  # from here on it trains
                if line.startswith("trial 0"):
                    break
            try:
                process.wait(moments.uniform(0.05, 0.9))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                left -= 1
        _, errors = process.communicate()
        after = finished_results(out)
        assert not [key for key, identity in before.items() if after.get(key) != identity]
        before = after
        if process.returncode == 0:
            finished = True
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert finished
    assert left < kills
    found = results(out)
    assert found.keys() == expected.keys()
    same = [name for name in expected if not name.startswith("report")]
    assert not [name for name in same if found[name] != expected[name]]
    reports = [
        without_seconds(json.loads((tmp_path / name / "report.json").read_text()))
        for name in ("whole", "out")
    ]
    for content in reports:
        del content["command"]
    assert reports[0] == reports[1]
    temporary = [path for path in out.rglob("*") if ".tmp" in path.name or path.name in ("lock", "state.bin")]
    assert not temporary
