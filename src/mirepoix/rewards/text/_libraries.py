"""The libraries of language models, used quietly: no bars, no messages, no telemetry, no traces left behind."""

from __future__ import annotations

import importlib
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mirepoix.types import InputError

__all__ = ["library", "quiet"]

TALKING = ("accelerate", "datasets", "huggingface_hub", "peft", "tokenizers", "transformers", "trl")
"""Libraries whose log messages and warnings are not about what a user of this package did."""

SETTINGS = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def library(name: str) -> Any:
    """An optional library, imported quietly.

    Raises:
        InputError: If it is not installed.
    """
    with quiet():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
                raise
            raise InputError(
                f"expected the library {name.split('.')[0]!r}, which is not installed. Install the extra: "
                "pip install 'mirepoix[text]'."
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block other libraries are silent; global generators and the environment are put back afterwards.

    Variables of the environment that are set already are respected. Nothing is asked of a network: what is loaded is
    loaded from folders alone.
    """
    before = dict(os.environ)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    levels = {name: logging.getLogger(name).level for name in TALKING}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with warnings.catch_warnings():
        for name in (*TALKING, "torch"):
            warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        for name in TALKING:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            with _torch_state(), _no_bars():
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(
                {name: value for name, value in before.items() if os.environ.get(name) != value}
            )


@contextmanager
def _torch_state() -> Iterator[None]:
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _no_bars() -> Iterator[None]:
    """Loading weights draws a bar of its own, whatever the environment says."""
    import sys

    if "transformers" not in sys.modules:
        yield
        return
    bars = importlib.import_module("transformers.utils.logging")
    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()
