"""The benchmarks run; what they measure is read by people, as a machine under test has no steady clock."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file

from mirepoix.objectives import OBJECTIVES

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
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


SOUP = {
    "`cat` to /dev/null": "",
    "`cat`, then write one": "",
    "`cat`, then write one, with fsync": "",
    "`mirepoix soup`": "the mean, rounded once",
    "torch, `safe_open`, float32 sums": None,
    "torch, `safe_open`, float64 sums": "the mean, rounded once",
    "`torch.load` one by one": None,
}


def run_merging_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "merging.py", "--tiny", "--repeats", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(printed: str) -> list[dict[str, str]]:
    """The rows of the one table, by their headings."""
    head, line, *rows = (
        [cell.strip() for cell in row.strip("|").split("|")] for row in printed.splitlines() if row[:1] == "|"
    )
    assert all(set(cell) <= set("-:") for cell in line)
    assert {len(row) for row in (line, *rows)} == {len(head)}
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_every_way_to_the_mean_is_measured_and_compared_with_it(root, tmp_path):
    printed = run_merging_benchmark(
        root, "--part", "soup", "--folder", tmp_path, "--json", tmp_path / "result.json"
    )
    rows = rows_of(printed)
    assert [row["program"] for row in rows] == list(SOUP)
    assert "mergekit, raw linear was left out" in printed
    for row in rows:
        # Eight float32 numbers rarely sum exactly in float32, so sums that are rounded on the way are seen.
        expected = SOUP[row["program"]]
        assert row["result"] == expected if expected is not None else "of entries off" in row["result"]
        assert float(row["seconds"]) > 0
        assert float(row["x floor"]) > 0
    [ours] = (row for row in rows if row["program"] == "`mirepoix soup`")
    assert ours["x mirepoix"] == "1.00"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    [table] = json.loads((tmp_path / "result.json").read_text())["tables"]
    assert [row["program"] for row in table["rows"]] == list(SOUP)
    assert all(row["peaks"][0] > 1e6 for row in table["rows"])


def test_other_rules_are_measured_against_the_average(root, tmp_path):
    rows = rows_of(run_merging_benchmark(root, "--part", "rules", "--folder", tmp_path))
    rules = [row["program"] for row in rows if "cat" not in row["program"]]
    assert rules == ["average", "task-arithmetic", "ties", "dare", "model-stock", "average", "slerp"]
    assert all(float(row["x average"]) > 0 for row in rows)


def benchmark(root: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("merging_benchmark", root / "benchmarks" / "merging.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_a_mean_of_mirepoix_with_other_bits_stops_the_run(root, tmp_path):
    merging = benchmark(root)
    members = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for member, value in zip(members, (1.0, 2.0), strict=True):
        save_file({"w": np.full(4, value, np.float32), "n": np.array(7)}, member)
    mean = np.full(4, 1.5, np.float32)
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    save_file({"w": mean, "n": np.array(7)}, right)
    mean[2] = np.nextafter(mean[2], np.float32(2))
    save_file({"w": mean, "n": np.array(7)}, wrong)

    rows = [merging.Row("two", program, [], out, members) for program, out in
            ((merging.OURS, right), (merging.MERGEKIT, wrong))]  # fmt: skip
    merging.check_results(merging.Table("soup", "", rows, {}))
    assert rows[0].result() == "the mean, rounded once"
    assert rows[1].differing == (0.25, 2.0**-23)
    rows[0].out = wrong
    with pytest.raises(SystemExit, match=r"expected the mean rounded once: 25\.0% of entries off"):
        merging.check_results(merging.Table("soup", "", rows, {}))


def run_measures_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "measures.py", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_measures_at_once_are_measured_beside_a_loop_over_pairs(root, tmp_path):
    printed = run_measures_benchmark(root, "--part", "pairs", "--json", tmp_path / "result.json")
    works = [row["what"] for row in rows_of(printed)]
    assert works == [
        "`measure_predictions`, 4 members, 200 samples, 5 classes",
        "pair by pair, 6 pairs",
        "Jensen-Shannon, all pairs",
    ]
    result = json.loads((tmp_path / "result.json").read_text())
    ours, *others = result["tables"]["pairs"]
    assert ours["ratios"] == []
    assert ours["gigabytes"][0] > 0.01
    for row in others:
        assert row["ratios"] == [row["seconds"][0] / ours["seconds"][0]]


def test_the_way_between_weights_is_measured_beside_bare_evaluations(root):
    bare, ours = rows_of(run_measures_benchmark(root, "--part", "path"))
    assert bare["what"] == "11 evaluations of a ResNet-20 on 16 images"
    assert ours["what"] == "`connect`, 11 points"
    assert float(ours["ratio"]) > 0


def run_objectives_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "objectives.py", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_objective_is_measured_beside_erm(root, tmp_path):
    printed = run_objectives_benchmark(root, "--part", "features", "--json", tmp_path / "result.json")
    rows = rows_of(printed)
    need_images = ("arm", "cutmix", "manifold_mixup")
    assert [row["objective"] for row in rows] == [
        f"`{OBJECTIVES[name].__name__}`" for name in OBJECTIVES if name not in need_images
    ]
    [table] = json.loads((tmp_path / "result.json").read_text())["tables"]
    for row in table["rows"]:
        assert row["ratios"] == [row["seconds"][0] / row["erm"][0]]
    assert all(row["wish"] == "" for row in rows)


def test_an_objective_is_measured_with_a_whole_network(root):
    rows = rows_of(run_objectives_benchmark(root, "--part", "resnet20", "--only", "ARM", "Fishr"))
    assert [row["objective"] for row in rows] == ["`ARM`", "`Fishr`"]
    assert [row["wish"] for row in rows] == ["", "1.15"]
    assert all(float(row["ratio (median)"]) > 0 for row in rows)


def run_ensembles_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "ensembles.py", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_members_trained_together_are_measured_beside_members_alone(root, tmp_path):
    printed = run_ensembles_benchmark(
        root,
        "--part",
        "dice",
        "mixmo",
        "inference",
        "joint",
        "--members",
        "2",
        "--json",
        tmp_path / "result.json",
    )
    tables = json.loads((tmp_path / "result.json").read_text())["tables"]
    assert list(tables) == ["dice", "mixmo", "inference", "joint"]
    compared = {(row["ours"], row["against"], row["limit"]) for row in tables["dice"]}
    assert compared == {
        ("DICE", "Independent", 1.25),
        ("DICE", "2 updates of ERM", 1.25),
        ("Independent", "2 updates of ERM", None),
    }
    assert [row["limit"] for row in tables["mixmo"]] == [1.1]
    assert [row["limit"] for row in tables["inference"]] == [1.05, None, None]
    for row in (row for table in tables.values() for row in table):
        assert row["ratios"] == [row["seconds"][0] / row["others"][0]]
        assert f"| {row['network']} | {row['ours']} |" in printed


def test_later_members_are_measured_beside_plain_ones(root, tmp_path):
    run_ensembles_benchmark(
        root, "--part", "frozen", "later", "--clock", "processor", "--json", tmp_path / "result.json"
    )
    tables = json.loads((tmp_path / "result.json").read_text())["tables"]
    frozen, later = ([(row["ours"], row["against"]) for row in tables[part]] for part in ("frozen", "later"))
    assert frozen == [(f"from {first} on", "all") for first in ("layer3", "layer4", "classifier")]
    assert later == [(name, "ERM") for name in ("RTD", "MSE", "repulsion", "orthogonal weights", "RTD")]


def run_rewards_benchmark(root: Path, *options: str | Path) -> str:
    command = [sys.executable, root / "benchmarks" / "rewards.py", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_numbers_of_a_front_and_soups_of_adapters_are_measured(root, tmp_path):
    printed = run_rewards_benchmark(root, "--part", "front", "adapters", "--json", tmp_path / "result.json")
    tables = json.loads((tmp_path / "result.json").read_text())["tables"]
    assert [row["what"] for row in tables["adapters"]] == ["`cat` of both", "exact soup, as one adapter"]
    assert len(tables["front"]) == 7
    assert "| hypervolume, 100 points, 3 rewards |" in printed


def test_a_front_of_soups_is_measured_beside_one_training_per_point(root, tmp_path):
    for name in ("trl", "peft", "stable_baselines3", "mujoco"):
        pytest.importorskip(name, reason="pip install 'mirepoix[text,control]'")
    run_rewards_benchmark(root, "--part", "cost", "reload", "--json", tmp_path / "result.json")
    tables = json.loads((tmp_path / "result.json").read_text())["tables"]
    assert [row["what"].split(":")[0] for row in tables["cost"]] == ["soups"] * 3 + ["MORL"] * 3
    trainings, _, front = tables["cost"][:3]
    assert trainings["ratios"][0] < 1
    assert front["seconds"] > trainings["seconds"]
    assert [row["what"] for row in tables["reload"]] == [
        f"11 points {way}"
        for way in ("written in place", "merged, written, loaded", "PEFT, all loaded", "generated")
    ]
