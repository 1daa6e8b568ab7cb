"""The example, and what decides whether a soup of policies works."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.rewards import reward_connectivity, simplex_lattice, sweep
from mirepoix.rewards.control import (
    Locomotion,
    PolicyEvaluation,
    PPORun,
    PPOTrainer,
    initial_policy,
    policy_expert,
)


def run_example(root, out, *options, timeout):
    command = [sys.executable, root / "examples" / "halfcheetah.py", "--out", out, *options]
    paths = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=out)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return done.stdout


def points(out, front):
    rows = [json.loads(line) for line in (out / f"{front}.jsonl").read_text().splitlines()]
    return [
        (row["coefficients"]["cautious"], row["means"]["risky"], row["means"]["cautious"]) for row in rows
    ]


def test_an_example_opens_with_what_to_expect(root):
    opening = (root / "examples" / "halfcheetah.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:  python examples/halfcheetah.py", "Time:", "Expected:"):
        assert word in opening


def test_the_example_goes_from_a_start_to_a_front(root, tmp_path):
    printed = run_example(root, tmp_path, "--smoke", timeout=1800)
    for words in (
        "rewarded soup, 11 points",
        "MORL, 3 points",
        "Linear mode connectivity",
        "Soup and ensemble",
    ):
        assert words in printed
    soups, scalarised = points(tmp_path, "rewarded_soup"), points(tmp_path, "MORL")
    assert [share for share, *_ in soups] == pytest.approx([1 - i / 10 for i in range(11)])
    assert scalarised[:2] == [soups[-1], soups[0]]  # MORL with one reward alone is its expert
    assert points(tmp_path, "ensemble_of_actions")[0] == soups[0]


@pytest.mark.long
def test_soups_of_a_start_that_walks_lie_above_the_chord(root, tmp_path):
    printed = run_example(root, tmp_path, timeout=3600)
    assert "lies on or above the chord" in printed
    soups = points(tmp_path, "rewarded_soup")
    assert max(risky for _, risky, _ in soups[1:-1]) > max(soups[0][1], soups[-1][1])


@pytest.mark.long
def test_soups_of_a_start_that_hardly_walks_are_not_connected():
    # Measured: the smallest margin of the velocity is -355, at 0.6 of the cautious expert.
    task = Locomotion(alphas={"risky": 0.0, "cautious": 2.0})
    starting = PPOTrainer(reward={"risky": 0.5, "cautious": 0.5}, gather=True)  # price 1
    start = starting(initial_policy(task), task, PPORun(steps=200_000, learning_rate=5e-4))
    run = PPORun(steps=100_000, learning_rate=2e-4, seed=1)
    experts = [
        policy_expert(name, PPOTrainer(reward={name: 1.0})(start, task, run), start) for name in task.rewards
    ]
    evaluate = PolicyEvaluation(task, start)
    found = reward_connectivity(sweep(experts, simplex_lattice(list(task.rewards), 5), evaluate))
    evaluate.close()
    assert not found.holds
    assert found.rewards["risky"].minimum < -100
