"""The benchmark runs; what it measures is read by people, as a machine under test has no steady clock."""

import json
import subprocess
import sys


def test_the_engines_are_measured_and_written_to_a_file(root, tmp_path):
    script, result = root / "benchmarks" / "sweep.py", tmp_path / "result.json"
    command = [sys.executable, script, "--quick", "--engines", "executor", "pool", "inline", "--json", result]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    table = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    engines = ["`Inline`", "`LocalPool`", "ProcessPoolExecutor, spawn"]
    assert [cells[0].removeprefix("| ") for cells in table] == engines
    rows = json.loads(result.read_text())["rows"]
    assert [row["engine"] for row in rows] == engines
    for row in rows:
        assert row["workers"] == (1 if row["engine"] == "`Inline`" else 2)
        assert row["naps"][0] >= 1
        assert len(row["start"]) == len(row["first"]) == len(row["empty"]) == 1
