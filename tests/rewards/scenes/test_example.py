"""The example of captions."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")
pytest.importorskip("sacrebleu", reason="pip install 'mirepoix[text]'")
pytest.importorskip("nltk", reason="pip install 'mirepoix[text]'")


def run_example(root, out, *options, timeout):
    command = [sys.executable, "-W", "error", root / "examples" / "captioning.py", "--out", out, *options]
    paths = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def points(out, front):
    return [json.loads(line) for line in (out / f"{front}.jsonl").read_text().splitlines()]


def test_an_example_opens_with_what_to_expect(root):
    opening = (root / "examples" / "captioning.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:  python examples/captioning.py", "Time:", "Expected:"):
        assert word in opening


@pytest.mark.slow
def test_the_example_goes_from_a_start_to_a_front(root, tmp_path):
    options = ("--smoke", "--all", "--rewards", "bleu4", "meteor")
    printed = run_example(root, tmp_path, *options, timeout=1800)
    for words in (
        "rewarded soup, 11 points",
        "MORL, 3 points",
        "five experts, 6 points",
        "Linear mode",
        "ensemble",
    ):
        assert words in printed
    soups, scalarised = points(tmp_path, "rewarded_soup"), points(tmp_path, "MORL")
    assert [row["coefficients"]["meteor"] for row in soups] == pytest.approx([1 - i / 10 for i in range(11)])
    assert [row["means"] for row in scalarised[:2]] == [soups[-1]["means"], soups[0]["means"]]
    assert points(tmp_path, "ensemble_of_words")[0]["means"] == soups[0]["means"]
    again = run_example(root, tmp_path, *options, timeout=1800)
    assert ": step" not in again  # nothing is trained twice
    assert points(tmp_path, "rewarded_soup") == soups


@pytest.mark.long
def test_experts_improve_their_own_reward_and_soups_lie_above_the_chord(root, tmp_path):
    printed = run_example(root, tmp_path, timeout=3600)
    assert "lies on or above the chord" in printed
