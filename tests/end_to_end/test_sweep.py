"""One small sweep on every engine: the same bits, and nothing that is finished is lost, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MIREPOIX = [sys.executable, "-m", "mirepoix", "domainbed", "run"]
RECIPE = """
name = "sweep"
runs = 4
strategies = [
  "fine_tuning", "moving_average", "swad", "ensemble", "diwa", "diwa_greedy", "inter_training", "ratatouille",
]
auxiliary_runs = 2
frozen_steps = 5
figures = false

[[datasets]]
dataset = "digits"
size = 12
targets = ["rotated_0", "rotated_75"]

[[auxiliaries]]
dataset = "digits-sloped"
size = 12

[network]
name = "mnist_cnn"
width = 16

[pretraining]
steps = 100
learning_rate = 3e-3

[probe]
steps = 20
learning_rate = 1e-2

[run]
steps = 60
learning_rate = 2e-3
batch_size = 12
check_every = 10
average_from = 20

[space]
learning_rate = [1e-3, 2e-3]
"""
TRAININGS = 2 * (1 + 4 + 2) + 1 + 1
"""For each target a probe, four runs and two recycled ones; on the auxiliary task a probe and the run both begin at."""
RAY = ("--ray", "local", "--workers", "2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "sweep.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def local(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the local pool, undisturbed."""
    out = tmp_path_factory.mktemp("local")
    done = start(recipe, out, "--workers", "2")
    _, errors = done.communicate(timeout=400)
    assert done.returncode == 0, errors
    return out


def start(recipe: Path, out: Path, *engine: str) -> subprocess.Popen[str]:
    command = [*MIREPOIX, str(recipe), "--out", str(out), *engine]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def weights(out: Path) -> dict[str, bytes]:
    """All weights by their place in the store."""
    files = (out / "store" / "weights").glob("*/*.safetensors")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Identity of the record of every finished training: making it again would write another file."""
    records = (out / "store" / "weights").glob("*/record.json")
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in records}


def wait_for(out: Path, count: int, process: subprocess.Popen[str]) -> dict[str, tuple[int, int]]:
    """What is finished once ``count`` trainings are."""
    deadline = time.monotonic() + 200
    while len(found := finished(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{len(found)} trainings in 200 s"
        time.sleep(0.05)
    return found


def below(process: int) -> Iterator[int]:
    """The processes that descend from one."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    family = {process}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
        yield from more


def ray_workers_at_work(driver: int) -> list[int]:
    """Processes of Ray that carry out a task: their title says so."""
    found = []
    for process in below(driver):
        try:
            title = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if title.startswith("ray::") and not title.startswith(
            ("ray::IDLE", "ray::Dashboard", "ray::Runtime")
        ):
            found.append(process)
    return found


def check_same(out: Path, local: Path) -> None:
    assert len(finished(out)) == TRAININGS + 1  # and the pre-training
    assert weights(out) == weights(local)
    assert (out / "cells.json").read_bytes() == (local / "cells.json").read_bytes()
    assert (out / "tables.md").read_bytes() == (local / "tables.md").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_killed_ray_worker_and_then_a_killed_driver_lose_no_finished_run(
    recipe: Path, local: Path, tmp_path: Path
):
    pytest.importorskip("ray", reason="the extra `sweep` is not installed")
    driver = start(recipe, tmp_path, *RAY)
    wait_for(tmp_path, 4, driver)
    deadline = time.monotonic() + 60
    while not (workers := ray_workers_at_work(driver.pid)):
        assert time.monotonic() < deadline, "no worker was seen at work"
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)

    before = wait_for(tmp_path, 9, driver)  # the sweep went on
    driver.kill()
    driver.communicate()
    assert before.items() <= finished(tmp_path).items()

    before = finished(tmp_path)
    assert len(before) < TRAININGS
    again = start(recipe, tmp_path, *RAY)
    output, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert before.items() <= finished(tmp_path).items(), "a finished training was made again"
    check_same(tmp_path, local)
    assert "DiWA greedy" in output


def test_a_sweep_in_this_process_gives_the_bits_of_the_local_pool(recipe: Path, local: Path, tmp_path: Path):
    done = start(recipe, tmp_path, "--workers", "0")
    _, errors = done.communicate(timeout=400)
    assert done.returncode == 0, errors
    check_same(tmp_path, local)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_a_killed_local_worker_and_then_a_killed_driver_lose_no_finished_run(
    recipe: Path, local: Path, tmp_path: Path
):
    driver = start(recipe, tmp_path, "--workers", "2")
    wait_for(tmp_path, 4, driver)
    spawned = [
        process
        for process in below(driver.pid)
        if "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
    ]
    os.kill(spawned[0], signal.SIGKILL)
    before = wait_for(tmp_path, 9, driver)
    driver.kill()
    driver.communicate()
    again = start(recipe, tmp_path, "--workers", "2")
    _, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert before.items() <= finished(tmp_path).items(), "a finished training was made again"
    check_same(tmp_path, local)
