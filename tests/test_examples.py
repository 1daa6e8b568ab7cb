"""Examples run to their end, so the claims that they make hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_example(root: Path, name: str, *options: str | Path) -> str:
    command = [sys.executable, root / "examples" / f"{name}.py", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", ["flatness", "hessian_and_gradient_variance", "fishr_colored_mnist"])
def test_an_example_opens_with_what_to_expect(root, name):
    opening = (root / "examples" / f"{name}.py").read_text().split('"""')[1]
    for word in ("Paper:", f"Command:  python examples/{name}.py", "Time:", "Expected:"):
        assert word in opening


@pytest.mark.shared
def test_the_gradient_variance_stands_for_the_hessian(root, shared):
    printed = run_example(root, "hessian_and_gradient_variance", "--data", shared / "data")
    rows = rows_of(printed)
    assert [row[0] for row in rows] == ["domain", "+90%", "+80%"] * 2
    assert all(float(row[2].split()[0]) > 0.99 for row in rows[1:3])
    assert "The gradient variance stands for the Hessian" in printed


def test_averages_and_sam_are_flatter(root):
    printed = run_example(root, "flatness")
    rows = rows_of(printed)
    assert [row[0] for row in rows] == ["weights", "ERM", "MA of ERM", "SAM", "MA of SAM"]
    assert all(float(row[1].split()[0]) > 0 for row in rows[1:])


@pytest.mark.slow
@pytest.mark.shared
def test_fishr_ignores_a_colour_that_misleads(root, shared):
    printed = run_example(root, "fishr_colored_mnist", "--data", shared / "data")
    assert "Fishr" in printed
