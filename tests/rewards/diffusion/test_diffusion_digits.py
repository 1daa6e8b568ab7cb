"""The example."""

import json
import runpy
import sys

import pytest

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")


@pytest.fixture
def run_example(root, monkeypatch, capsys):
    """The example with some options, in this process: another one would import diffusers again."""

    def run(*options):
        place = str(root / "examples" / "diffusion_digits.py")
        monkeypatch.setattr(sys, "argv", [place, *map(str, options)])
        runpy.run_path(place, run_name="__main__")
        return capsys.readouterr().out

    return run


def points(out, front):
    rows = [json.loads(line) for line in (out / f"{front}.jsonl").read_text().splitlines()]
    return [(row["coefficients"]["boldness"], row["means"]) for row in rows]


def test_the_example_opens_with_what_to_expect(root):
    opening = (root / "examples" / "diffusion_digits.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:  python examples/diffusion_digits.py", "Time:", "Expected:"):
        assert word in opening


def test_the_example_goes_from_a_start_to_a_front(run_example, tmp_path):
    printed = run_example("--smoke", "--out", tmp_path)
    for words in ("a zero, a one", "rewarded soup, 11 points", "MORL, 3 points", "Linear mode connectivity"):
        assert words in printed
    soups, scalarised = points(tmp_path, "rewarded_soup"), points(tmp_path, "MORL")
    assert sorted(share for share, _ in soups) == pytest.approx([i / 10 for i in range(11)])
    assert set(soups[0][1]) == {"legibility", "boldness", "symmetry"}
    # MORL with one reward alone is its expert.
    assert scalarised[0] == next(point for point in soups if point[0] == 0)
    assert points(tmp_path, "ensemble_of_noise_predictions")[0] == soups[0]


@pytest.mark.long
def test_each_expert_raises_its_reward_and_soups_lie_between(run_example, tmp_path):
    run_example("--out", tmp_path)
    ((_, start),) = points(tmp_path, "start")
    soups = dict(points(tmp_path, "rewarded_soup"))
    assert soups[0.0]["legibility"] > start["legibility"] + 0.3
    assert soups[1.0]["boldness"] > start["boldness"] + 0.02
    assert soups[0.5]["legibility"] > (soups[0.0]["legibility"] + soups[1.0]["legibility"]) / 2
    assert soups[0.5]["boldness"] == pytest.approx(
        (soups[0.0]["boldness"] + soups[1.0]["boldness"]) / 2, abs=0.005
    )
