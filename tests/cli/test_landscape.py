"""``mirepoix landscape``: distances and angles of weights, and with a score what lies between them."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch
from tests.cli.conftest import call, make_folder

from mirepoix.checkpoints import write_weights
from mirepoix.models import NetworkSpec, initial_weights

SCORES = """
import numpy as np

def square(theta):
    return float((theta["w"] ** 2).sum())

def below(theta):
    return [1.0, 2.0, 3.0 - float(theta["w"][0])]

def text(theta):
    return "much"
"""
PLACES = {"a": [-1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0], "d": [-3.0, 5.0], "start": [0.0, 0.0]}


@pytest.fixture
def files(cli, monkeypatch):
    """Weights of two numbers and a module of scores, in the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_landscape_scores", raising=False)
    for name, values in PLACES.items():
        write_weights(f"{name}.safetensors", {"w": torch.tensor(values)})
    with open("own_landscape_scores.py", "w") as file:
        file.write(SCORES)
    return cli


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of images, three weights of a small network and the options that name it."""
    folder = tmp_path_factory.mktemp("small")
    images = make_folder(folder / "images", domains=("a", "b"), images=4)
    spec = NetworkSpec(name="mnist_cnn", classes=2, channels=3, width=8)
    paths = []
    for seed in range(3):
        paths.append(folder / f"run-{seed}.safetensors")
        write_weights(paths[-1], initial_weights(spec, seed=seed))
    options = ["--model", "mnist_cnn", "--width", 8, "--size", 16, "--validation", images, "--device", "cpu"]
    return paths, options


def names(*letters):
    return [f"{letter}.safetensors" for letter in letters]


def distance(first, second):
    return math.dist(PLACES[first], PLACES[second])


def test_without_data_it_tells_distances_cosines_and_locality(files):
    result = files("landscape", *names("a", "b", "c"), "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["members"] == ["a", "b", "c"]
    for i, first in enumerate("abc"):
        for j, second in enumerate("abc"):
            assert content["distances"][i][j] == pytest.approx(distance(first, second))
    assert content["cosines"][0] == pytest.approx([1, -1, 0])
    mean = [0, 1 / 3]
    expected = [math.dist(PLACES[name], mean) for name in "abc"]
    assert content["distance_to_average"] == pytest.approx(expected)
    assert content["locality"] == pytest.approx(max(expected) ** 2)
    assert content["angles"] is None
    note = "cosines of whole weights from one start are all near 1; give --start for those of task vectors"
    assert content["notes"] == [note]
    assert files("landscape", *names("a", "b")).out.count(f"note: {note}") == 1
    assert content["score"] is None
    assert "connected" not in content


def test_angles_are_seen_from_the_start(files):
    content = json.loads(
        files("landscape", *names("a", "b", "c"), "--start", "start.safetensors", "--json").out
    )
    assert content["angles"]["degrees"][0] == pytest.approx([0, 180, 90])
    assert content["angles"]["norms"] == pytest.approx([1, 1, 1])
    assert content["notes"] == []
    shifted = json.loads(files("landscape", *names("a", "c"), "--start", "b.safetensors", "--json").out)
    assert shifted["cosines"][0][1] == pytest.approx(1 / math.sqrt(2))
    assert shifted["angles"]["degrees"][0][1] == pytest.approx(45)
    text = files("landscape", *names("a", "c"), "--start", "b.safetensors").out
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["a", "0.7071", "2"]
    assert "angle of task vectors, degrees" in text
    assert "45.00" in text


def test_a_member_that_did_not_move_has_no_angle(files, tmp_path):
    out = tmp_path / "out"
    result = files("landscape", *names("a", "b"), "--start", "a.safetensors", "-o", out)
    assert result.code == 0, result.err
    assert "n/a" in result.out
    assert json.loads((out / "landscape.json").read_text())["angles"]["degrees"][0][1] is None


def test_pairs_that_are_not_connected_give_exit_code_one(files):
    score = ("--score", "own_landscape_scores:square", "--points", 3)
    result = files("landscape", *names("a", "b", "c"), *score)
    assert result.code == 1
    assert "Not connected: 3 of 3 pairs." in result.out
    content = json.loads(files("landscape", *names("a", "b", "c"), *score, "--json").out)
    barriers = [[0, 1, 0.5], [1, 0, 0.5], [0.5, 0.5, 0]]
    np.testing.assert_allclose(content["barriers"], barriers)
    assert content["values"] == {
        "members": {"a": 1, "b": 1, "c": 1},
        "average": pytest.approx(1 / 9),
        "ensemble": None,
    }
    assert [(each["first"], each["second"]) for each in content["connections"]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    result = files("landscape", *names("a", "b", "c"), *score, "--tolerance", 0.6)
    assert result.code == 1
    assert "Not connected: 1 of 3 pairs." in result.out
    assert "a, b: Not connected: at t = 0.5" in result.out
    better = files("landscape", *names("a", "b", "c"), *score, "--better", "lower")
    assert better.code == 0
    assert "Connected: all 3 pairs." in better.out
    one = files("landscape", *names("a", "b"), *score, "--tolerance", 1)
    assert one.code == 0
    assert "Connected: the barrier is 1, at t = 0.5" in one.out


def test_a_score_per_sample_is_told_by_its_mean(files):
    content = json.loads(
        files("landscape", *names("a", "b"), "--score", "own_landscape_scores:below", "--json").out
    )
    assert content["values"]["members"] == {"a": pytest.approx(7 / 3), "b": pytest.approx(5 / 3)}
    assert content["connections"][0]["samples"] == 3


def test_the_plane_holds_the_values_around_three_weights(files, tmp_path):
    out = tmp_path / "out"
    command = (
        "landscape",
        *names("a", "b", "c", "d"),
        "--score",
        "own_landscape_scores:square",
        "--better",
        "lower",
    )
    command += ("--points", 3, "--grid", 4, "-o", out)
    result = files(*command, "--parquet")
    assert result.code == 0, result.err
    figures = ("distances", "cosines", "barriers", "plane")
    expected = {f"{name}.{end}" for name in figures for end in ("svg", "png", "csv", "parquet")}
    assert {path.name for path in out.iterdir()} == expected | {"landscape.json"}
    content = json.loads((out / "landscape.json").read_text())
    plane = content["plane"]
    assert plane["corners"] == ["a", "b", "c"]
    origin = np.array(PLACES["a"])  # where x and y are 0; b lies along x, and c above
    with (out / "plane.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 + 4
    for row in rows[:16]:
        point = origin + np.array([float(row["x"]), float(row["y"])])
        assert float(row["value"]) == pytest.approx((point**2).sum(), abs=1e-5)
    assert [row["mark"] for row in rows[16:]] == ["a", "b", "c", "average"]
    assert (float(rows[19]["x"]), float(rows[19]["y"])) == pytest.approx((1, 1 / 3))
    asked = json.loads(files(*command, "--plane", *names("d", "b", "c"), "--json").out)
    assert asked["plane"]["corners"] == ["d", "b", "c"]
    assert json.loads(files(*command[:-2], "--json").out)["plane"] is None


def test_three_weights_on_a_line_have_no_plane(files, tmp_path):
    command = (
        "landscape",
        *names("a", "b", "start"),
        "--score",
        "own_landscape_scores:square",
        "--better",
        "lower",
    )
    result = files(*command, "-o", tmp_path / "out")
    assert result.code == 0
    assert "note: no plane is drawn: plane: the three weights lie on one line" in result.out
    assert not (tmp_path / "out" / "plane.svg").exists()
    result = files(*command, "--plane", *names("a", "b", "start"))
    assert result.code == 2
    assert "lie on one line" in result.err


def test_networks_are_measured_on_images_with_their_average_and_ensemble(small, cli, tmp_path):
    paths, options = small
    out = tmp_path / "out"
    command = ("landscape", *paths, *options, "--points", 3, "--grid", 2)
    result = call(*command, "-o", out)
    content = json.loads((out / "landscape.json").read_text())
    assert result.code == (0 if content["connected"] else 1), result.err
    assert content["score"] == "accuracy"
    assert all(0 <= value <= 1 for value in content["values"]["members"].values())
    assert content["connections"][0]["samples"] == 16
    member = content["values"]["members"]["run-0"]
    lines = [line.split() for line in result.out.splitlines()]
    assert [lines[k][0] for k in range(6)] == ["to", "run-0", "run-1", "run-2", "average", "ensemble"]
    assert lines[1][2] == f"{100 * member:.1f}"
    line = json.loads(call("connect", *paths[:2], *options, "--points", 3, "--json").out)
    assert line["points"][0]["value"] == member
    assert line["barrier"] == content["connections"][0]["barrier"]
    same = call("landscape", paths[0], paths[0], *options, "--json")
    assert same.code == 2
    assert "expected each file once" in same.err


def test_the_nll_of_the_ensemble_is_that_of_the_mean_logits(small):
    from mirepoix.metrics import nll
    from mirepoix.scores import ClassificationScore

    paths, options = small
    command = ("landscape", *paths[:2], *options, "--metric", "nll", "--points", 3, "--json")
    content = json.loads(call(*command).out)
    assert content["higher_is_better"] is False
    judge = ClassificationScore.of_folder(
        "mnist_cnn", options[7], width=8, size=16, metric="nll", device="cpu"
    )
    from mirepoix.checkpoints import open_weights

    logits = torch.stack([judge._logits(open_weights(path))[0] for path in paths[:2]])
    labels = torch.from_numpy(judge.labels)
    assert content["values"]["members"]["run-0"] == pytest.approx(float(nll(logits[0], labels)))
    expected = float(nll(logits.mean(0), labels))
    assert expected != pytest.approx(float(nll(logits.softmax(-1).mean(0).log(), labels)), rel=1e-5)
    assert content["values"]["ensemble"] == pytest.approx(expected, rel=1e-5)


def test_flatness_is_that_of_the_members_and_of_their_average(small):
    from mirepoix.checkpoints import open_weights
    from mirepoix.landscape._flatness import top_eigenvalues
    from mirepoix.scores import ClassificationScore
    from mirepoix.weights import average

    paths, options = small
    content = json.loads(call("landscape", *paths[:2], *options, "--points", 3, "--hessian", "--json").out)
    flatness = content["flatness"]
    assert list(flatness) == ["run-0", "run-1", "average"]
    judge = ClassificationScore.of_folder("mnist_cnn", options[7], width=8, size=16, device="cpu")
    theta = average([open_weights(path) for path in paths[:2]])
    top = top_eigenvalues(judge.network.build(), theta, list(judge._batches()))
    assert flatness["average"]["top_eigenvalue"] == pytest.approx(float(top[0]), rel=1e-3)
    assert len({each["trace"] for each in flatness.values()}) == 3
    assert all(each["standard_error"] > 0 for each in flatness.values())


def test_bad_input_exits_with_two_and_says_what_to_do(files, tmp_path):
    two, score = names("a", "b"), ("--score", "own_landscape_scores:square")
    write_weights("long.safetensors", {"w": torch.zeros(3)})
    for arguments, message in (
        (two[:1], "expected two files of weights or more, got 1"),
        ([two[0], two[0]], "expected each file once"),
        ([*two, "long.safetensors"], "'w'"),
        ([*two, "--start", "long.safetensors"], "'w'"),
        ([*two, "nowhere.safetensors"], "nowhere.safetensors"),
        ([*two, "--model", "mnist_cnn"], "--model: expected --model NAME and --validation FOLDER together"),
        (
            [*two, "--validation", tmp_path],
            "--validation: expected --model NAME and --validation FOLDER together",
        ),
        ([*two, *score, "--model", "mnist_cnn"], "--score: expected no --model beside it"),
        ([*two, "--better", "lower"], "--better: needs a score"),
        ([*two, "--plane", *names("a", "b", "c")], "--plane: needs a score"),
        ([*two, "--batch-norm", "reestimate"], "--batch-norm reestimate: needs a score"),
        ([*two, *score, "--hessian"], "--hessian: needs the images of --model and --validation"),
        ([*two, "--parquet"], "--parquet: goes with --out only"),
        ([*two, "-o", "a.safetensors"], "expected the name of a folder, got a file"),
        ([*two, *score, "--plane", *names("a", "b", "c")], "got c.safetensors"),
        ([*two, *score, "--plane", *names("a", "b", "a")], "got one twice"),
        ([*two, *score, "--points", 2], "points: expected at least 3"),
        (
            [*names("a", "b", "c"), *score, "--grid", 1, "--plane", *names("a", "b", "c")],
            "at least 2 columns",
        ),
        ([*two, "--score", "own_landscape_scores:text"], "expected a number, or one per sample, got str"),
    ):
        result = files("landscape", *arguments)
        assert result.code == 2, arguments
        assert message in result.err, (message, result.err)
        assert not result.out
