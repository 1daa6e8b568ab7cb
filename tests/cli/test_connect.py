"""``mirepoix connect``: the table, the verdict, and the exit code that a script asks for."""

import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from tests.cli.conftest import call, make_folder

from mirepoix.checkpoints import write_weights
from mirepoix.models import NetworkSpec, initial_weights

SCORES = """
import numpy as np

def square(theta):
    return float((theta["w"] ** 2).sum())

def right(theta):
    return np.full(50, float((theta["w"] ** 2).sum()))
"""


@pytest.fixture
def files(cli, monkeypatch):
    """Three tiny weights and a module of scores in the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_connect_scores", raising=False)
    for name, values in {"a": [-1.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}.items():
        write_weights(f"{name}.safetensors", {"w": torch.tensor(values)})
    with open("own_connect_scores.py", "w") as file:
        file.write(SCORES)
    return cli


def network_files(spec, folder, steps=(0, 1)):
    paths = []
    for seed in steps:
        paths.append(folder / f"run-{seed}.safetensors")
        write_weights(paths[-1], initial_weights(spec, seed=seed))
    return paths


@pytest.fixture
def small(cli, tmp_path):
    """A folder of images by domain and class, and two weights of a small network."""
    images = make_folder(tmp_path / "images", domains=("a", "b"), images=4)
    spec = NetworkSpec(name="mnist_cnn", classes=2, channels=3, width=8)
    options = ["--model", "mnist_cnn", "--width", 8, "--size", 16, "--validation", images, "--device", "cpu"]
    return network_files(spec, tmp_path), options


def test_a_barrier_exits_with_one_and_a_table(files):
    result = files(
        "connect", "a.safetensors", "b.safetensors", "--score", "own_connect_scores:square", "--points", 3
    )
    assert result.code == 1
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["t", "value", "chord", "worse", "by"]
    assert lines[1:4] == [["0.000", "1", "1", "0"], ["0.500", "0", "1", "1"], ["1.000", "1", "1", "0"]]
    assert (
        "Not connected: at t = 0.5 the value is 1 worse than the chord, beyond the tolerance of 0.02."
        in result.out
    )


def test_the_direction_and_the_tolerance_decide_the_exit_code(files):
    command = ("connect", "a.safetensors", "b.safetensors", "--score", "own_connect_scores:square")
    result = files(*command, "--better", "lower")
    assert (result.code, "Connected: no point is worse" in result.out) == (0, True)
    assert files(*command, "--tolerance", 1).code == 0
    assert files(*command, "--better", "higher", "--tolerance", 0.99).code == 1


def test_three_weights_give_a_triangle_and_a_figure(files):
    names = [f"{name}.safetensors" for name in "abc"]
    result = files(
        "connect",
        *names,
        "--score",
        "own_connect_scores:square",
        "--points",
        3,
        "--plot",
        "triangle.svg",
        "--json",
    )
    content = json.loads(result.out)
    assert result.code == 1
    assert content["weights"] == names
    assert len(content["points"]) == 6
    assert content["barrier"] == 1
    assert content["at"] == [0.5, 0.5, 0]
    assert content["samples"] is None
    text = " ".join(ElementTree.parse("triangle.svg").getroot().itertext())
    assert "own_connect_scores:square" in text
    table = files("connect", *names, "--score", "own_connect_scores:square", "--points", 3).out
    assert table.splitlines()[0].split() == ["A", "B", "C", "value", "chord", "worse", "by"]


def test_a_score_per_sample_gives_the_margin(files):
    result = files(
        "connect", "a.safetensors", "c.safetensors", "--score", "own_connect_scores:right", "--json"
    )
    content = json.loads(result.out)
    assert content["samples"] == 50
    assert content["margin"] == 0
    assert content["barrier"] == pytest.approx(0.5)
    assert "the noise of 50 samples" in content["verdict"]


def test_the_same_weights_are_connected_on_images(small):
    (first, _), options = small
    result = call("connect", first, first, *options, "--points", 3, "--plot", "line.png")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["t", "accuracy,", "%", "chord,", "%", "worse", "by"]
    assert len({line.split()[1] for line in lines[1:4]}) == 1
    assert "Connected: no point is worse than the chord." in result.out
    assert "Figure: line.png" in result.out
    assert "reading images" in result.err
    assert "batch-norm" not in result.out


def test_two_networks_are_measured_on_images_in_points_of_percent(small):
    paths, options = small
    result = call("connect", *paths, *options, "--points", 3, "--tolerance", 0, "--json", "--batch-size", 5)
    content = json.loads(result.out)
    assert result.code == (0 if content["connected"] else 1)
    assert content["samples"] == 16
    assert content["score"] == "accuracy"
    assert all(0 <= point["value"] <= 1 for point in content["points"])
    nll = json.loads(call("connect", *paths, *options, "--points", 3, "--metric", "nll", "--json").out)
    assert nll["higher_is_better"] is False
    assert nll["points"][0]["value"] > 0


def test_batch_norm_is_mentioned_where_an_average_changes_it_and_measured_again_if_asked(cli, tmp_path):
    images = make_folder(tmp_path / "images", domains=("a", "b"), images=4)
    spec = NetworkSpec(name="cifar_resnet20", classes=2)
    a, b = network_files(spec, tmp_path)
    theta = initial_weights(spec, seed=1)
    theta["featurizer.bn1.running_mean"] += 1
    write_weights(b, theta)
    command = (
        "connect",
        a,
        b,
        "--model",
        "cifar_resnet20",
        "--validation",
        images,
        "--size",
        16,
        "--points",
        3,
    )
    command += ("--metric", "nll", "--device", "cpu", "--json")
    averaged = json.loads(cli(*command).out)
    assert averaged["batch_norm"] == "average"
    assert "--batch-norm reestimate" in averaged["notes"][0]
    again = json.loads(cli(*command, "--batch-norm", "reestimate").out)
    assert again["batch_norm"] == "reestimate"
    assert not again["notes"]
    first, second = ([point["value"] for point in content["points"]] for content in (averaged, again))
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert first[1] != second[1]
    same = json.loads(cli(*command[:2], a, *command[3:]).out)
    assert same["batch_norm"] == "equal or none"
    assert not same["notes"]


def test_unreadable_images_can_be_left_out(small, tmp_path):
    (first, _), options = small
    (tmp_path / "images" / "a" / "cat" / "9.png").write_bytes(b"no picture")
    result = call("connect", first, first, *options, "--points", 3)
    assert result.code == 2
    assert "--skip-unreadable" in result.err
    result = call("connect", first, first, *options, "--points", 3, "--skip-unreadable")
    assert result.code == 0
    assert "note: 1 unreadable" in result.out


def test_bad_input_exits_with_two_and_says_what_to_do(files, tmp_path):
    a, b = "a.safetensors", "b.safetensors"
    score = ("--score", "own_connect_scores:square")
    write_weights("long.safetensors", {"w": torch.zeros(3)})
    for arguments, message in (
        ((a, *score), "expected 2 or 3 files of weights, got 1"),
        (
            (a, b),
            "expected a score, either --score module:function, or --model NAME and --validation FOLDER; got none",
        ),
        ((a, b, "--model", "mnist_cnn"), "got --model alone"),
        ((a, b, *score, "--model", "mnist_cnn"), "--score: expected no --model beside it"),
        ((a, b, *score, "--batch-norm", "reestimate"), "needs the images of --model and --validation"),
        (
            (a, b, "--model", "mnist_cnn", "--validation", tmp_path, "--better", "lower"),
            "--better: goes with --score only",
        ),
        ((a, b, *score, "--plot", "x.pdf"), "--plot x.pdf: expected a name ending in .svg or .png"),
        ((a, b, *score, "--points", 2), "points: expected at least 3"),
        ((a, b, "--score", "own_connect_scores:cube"), "has no 'cube'"),
        ((a, "nowhere.safetensors", *score), "nowhere.safetensors"),
        (
            (a, "long.safetensors", *score),
            "members 0 and 1 cannot be averaged: 'w' has shape (2,) in member 0",
        ),
    ):
        result = files("connect", *arguments)
        assert result.code == 2, arguments
        assert message in result.err
        assert not result.out


def test_a_file_of_another_network_is_named_before_anything_is_evaluated(small, tmp_path):
    (first, _), options = small
    other = tmp_path / "other.safetensors"
    write_weights(other, initial_weights(NetworkSpec(name="mnist_cnn", classes=3, width=8)))
    result = call("connect", first, other, *options)
    assert result.code == 2
    assert f"{other}: " in result.err
    assert "classifier.weight, expected shape (2, 16), got shape (3, 16)" in result.err
    assert "have 2 classes (cat, dog)" in result.err
