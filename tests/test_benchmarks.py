"""The benchmarks run; what they measure is read by people, as a machine under test has no steady clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LOOP = [
    f"{network}, {augmentation}"
    for network in ("cifar_resnet20 32 px", "mnist_cnn 28 px")
    for augmentation in ("no augmentation", "augmented")
]
DATA = [
    f"PACS 96 px, {path}{augmentation}"
    for path in ("cached", "streaming")
    for augmentation in ("", ", not augmented")
]


def run_training_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "training.py", "--quick", *options]
    # With two threads in a test suite that has both cores busy, torch's pools wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_cells(table: str) -> list[str]:
    return [line.split(" | ")[1] for line in table.splitlines() if line.startswith(("| loop", "| data"))]


def test_the_loop_is_measured_and_written_to_a_file(root, tmp_path):
    table = run_training_benchmark(root, "--part", "loop", "--json", tmp_path / "result.json")
    assert first_cells(table) == LOOP
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["what"] for row in result["rows"]] == LOOP
    assert all(ratio > 0 for row in result["rows"] for ratio in row["ratios"])
    assert f"torch {result['machine']['torch']}" in table


def test_the_data_path_is_measured_on_pacs(root, shared):
    table = run_training_benchmark(root, "--part", "data", "--data", shared / "data")
    assert set(first_cells(table)) == set(DATA)


def test_without_pictures_the_data_part_says_what_it_misses(root, tmp_path):
    table = run_training_benchmark(root, "--part", "data", "--data", tmp_path)
    assert first_cells(table) == []
    assert f"expected the folder {tmp_path / 'PACS'}" in table
