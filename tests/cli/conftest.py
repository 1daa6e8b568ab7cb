"""A folder of real image files, a recipe for it, and the command line in this process."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from mirepoix.checkpoints import write_weights
from mirepoix.cli import main
from mirepoix.models import NetworkSpec, initial_weights

RECIPE = """
name = "small"
members = 2
[data]
dataset = "folder"
size = 16
[network]
name = "mnist_cnn"
width = 8
weights = "start.safetensors"
[probe]
steps = 2
[run]
steps = 4
batch_size = 2
learning_rate = 1e-3
check_every = 2
average_from = 2
[space]
learning_rate = [1e-3, 2e-3]
"""


def make_folder(path: Path, domains=("a", "b", "c"), classes=("cat", "dog"), images=8) -> Path:
    random = np.random.default_rng(0)
    for d, domain in enumerate(domains):
        for c, label in enumerate(classes):
            folder = path / domain / label
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = random.integers(0, 120, size=(18, 18, 3))
                pixels[..., c] += 100
                pixels[..., 2] += 10 * d
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return path


class Result(NamedTuple):
    code: int
    out: str
    err: str


def call(*arguments) -> Result:
    """``mirepoix ...`` in this process and its current folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["mirepoix", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert "Traceback" not in err.getvalue()
    return Result(0 if code is None else int(code), out.getvalue(), " ".join(err.getvalue().split()))


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Run ``mirepoix ...`` in an empty current folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return call


def write_recipe(folder: Path, start_file: Path) -> Path:
    """A recipe whose start weights lie beside it."""
    folder.mkdir()
    (folder / "start.safetensors").write_bytes(start_file.read_bytes())
    (folder / "small.toml").write_text(RECIPE)
    return folder / "small.toml"


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, start_file) -> tuple[Path, Result]:
    """A folder with images, a recipe and a finished job; copy it before you change it."""
    folder = tmp_path_factory.mktemp("finished")
    make_folder(folder / "images")
    write_recipe(folder / "recipe", start_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = call("run", "recipe/small.toml", "--data", "images", "--out", "out", "--set", "members=3")
    return folder, result


@pytest.fixture
def finished(finished_once, tmp_path, monkeypatch) -> Result:
    """The finished job, copied into a current folder of this test's own."""
    folder, result = finished_once
    assert result.code == 0, result.err
    shutil.copytree(folder, tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    return result


@pytest.fixture(scope="session")
def start_file(tmp_path_factory) -> Path:
    spec = NetworkSpec(name="mnist_cnn", classes=2, channels=3, width=8)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    write_weights(path, initial_weights(spec, seed=5))
    return path


@pytest.fixture
def small(tmp_path, start_file) -> Path:
    """A recipe whose start weights lie beside it."""
    return write_recipe(tmp_path / "recipe", start_file)


@pytest.fixture
def images(tmp_path) -> Path:
    return make_folder(tmp_path / "images")
