"""Kill the built-in job at random moments: every time it continues, and in the end the bits are the same.

Also a script: ``python tests/end_to_end/test_kill.py --kills 20 --seed 0``.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

MIREPOIX = [sys.executable, "-m", "mirepoix", "run"]


def results(out: Path) -> dict[str, bytes]:
    """Everything a job makes but its clocks: weights, predictions, and every form of the report."""
    kinds = {".safetensors", ".svg", ".md", ".html"}
    files = [path for path in out.rglob("*") if path.suffix in kinds or path.name == "report.json"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def finished_results(out: Path) -> dict[str, tuple[int, int]]:
    """Identity of the record of every finished result: making it again would write another file."""
    records = out.glob("store/*/*/record.json")
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in records}


def run_with_kills(arguments: list[str], *, kills: int, seed: int, shortest: float, longest: float) -> str:
    """Compare one uninterrupted job with jobs that are killed, ``kills`` times in all."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.monotonic()
        subprocess.run([*MIREPOIX, *arguments, "--out", str(whole)], check=True, capture_output=True)
        alone = time.monotonic() - began
        expected = results(whole)
        assert any(name.startswith("members/") for name in expected)

        out = Path(folder, "killed")
        done, jobs, continued_inside = 0, 0, 0
        before: dict[str, tuple[int, int]] = {}
        most = 4 * kills + 4
        for _ in range(most):
            continued_inside += any(out.glob("store/*/*/state.bin"))
            process = subprocess.Popen(
                [*MIREPOIX, *arguments, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            try:
                # After the last kill the job may run to its end.
                wait = moments.uniform(shortest, longest) if done < kills else None
                _, errors = process.communicate(timeout=wait)
                assert process.returncode == 0, errors.decode()
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
            after = finished_results(out)
            again = [key for key, identity in before.items() if after.get(key) != identity]
            assert not again, f"made twice: {again}"
            before = after
            if process.returncode == 0:
                jobs += 1
                got = results(out)
                assert got.keys() == expected.keys()
                different = [name for name in expected if got[name] != expected[name]]
                assert not different, f"other bits: {different}"
                left = [
                    p for p in out.rglob("*") if "tmp" in p.name or p.name in ("lock", ".lock", "state.bin")
                ]
                assert not left, f"left behind: {left}"
                if done >= kills:
                    break
                shutil.rmtree(out)  # it finished before all kills were spent: start another
                before = {}
                shortest *= 0.7  # and kill the next one earlier
                longest *= 0.7
        else:
            raise AssertionError(f"after {most} attempts only {done} of {kills} kills met a running job")
        assert kills < 10 or continued_inside, "no kill fell inside a run whose state was saved"
    return (
        f"{done} kills in {jobs} finished job(s): the same {len(expected)} files, nothing made twice; "
        f"{continued_inside} continuations inside a run; uninterrupted {alone:.0f} s"
    )


@pytest.mark.slow
def test_the_digits_job_killed_at_twenty_random_moments_ends_in_the_same_bits():
    print(run_with_kills([], kills=20, seed=0, shortest=1.0, longest=16.0))


def test_a_small_job_killed_at_a_few_moments_ends_in_the_same_bits():
    small = [
        "members=2",
        'data.targets=["rotated_0"]',
        "run.steps=30",
        "pretraining.steps=40",
        "loop.save_every=0.1",
    ]
    arguments = [word for change in small for word in ("--set", change)]
    print(run_with_kills(arguments, kills=3, seed=1, shortest=4.0, longest=9.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shortest", type=float, default=1.0, help="seconds from start to the earliest kill")
    parser.add_argument("--longest", type=float, default=16.0, help="seconds from start to the latest kill")
    options = parser.parse_args()
    print(
        run_with_kills(
            [], kills=options.kills, seed=options.seed, shortest=options.shortest, longest=options.longest
        )
    )
