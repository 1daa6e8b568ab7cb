"""The library of diffusion models, asked for when it is needed."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, resources
from typing import Any

from mirepoix.types import InputError

__all__ = ["code_version", "diffusers", "library_versions", "one_thread"]


def diffusers() -> Any:
    """Diffusers, or an error that says how to get it.

    Raises:
        InputError: If it is not installed.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise InputError(
            "expected the library 'diffusers', which is not installed. Install the extra: "
            "pip install 'mirepoix[diffusion]'."
        ) from error


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a network, a schedule and a classifier are."""
    diffusers()
    return {name: metadata.version(name) for name in ("diffusers", "scikit-learn")}


@functools.cache
def code_version() -> str:
    """A digest of the files of this folder that decide the outcome of a training or an evaluation."""
    folder = resources.files("mirepoix") / "rewards" / "diffusion"
    digest = hashlib.sha256()
    for name in (
        "_digits.py",
        "_evaluate.py",
        "_loss_weights.py",
        "_network.py",
        "_optimise.py",
        "_samples.py",
        "_sampling.py",
        "_start.py",
        "_train.py",
    ):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread within the block, because the bits of a sum depend on their number; global generators stay."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
