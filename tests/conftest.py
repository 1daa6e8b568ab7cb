"""Shared by all tests: no network, strict shapes, and where the real inputs lie."""

from __future__ import annotations

import builtins
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: more threads would wait for each other

from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("mirepoix", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("mirepoix")

# Annotated shapes are checked here and cost nothing in production.
install_import_hook(
    ["mirepoix.diversity", "mirepoix.metrics", "mirepoix.predictions", "mirepoix.ensembles"],
    "beartype.beartype",
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with ``data/`` and ``weights/``: real inputs that do not belong to the repository."""
    path = Path(os.environ.get("MIREPOIX_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(
            "the real inputs are not here; set MIREPOIX_SHARED to the folder that holds data/ and weights/"
        )
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of ten megabytes, to be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(autouse=True)
def the_same_print() -> Iterator[None]:
    """Ray puts a `print` of its own into builtins; other tests want the real one."""
    before = builtins.print
    yield
    builtins.print = before
