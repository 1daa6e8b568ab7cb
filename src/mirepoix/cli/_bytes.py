"""The bar for work that is counted in bytes: quick work shows none and pays for none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["bytes_bar"]

PATIENCE = 1.0
"""Seconds without a bar."""


@contextmanager
def bytes_bar(text: str, wanted: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with the bytes done and in all; None where nobody is watching."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    started = time.monotonic()
    bars: list[Any] = []

    def update(done: int, total: int) -> None:
        if not bars:
            if time.monotonic() - started < PATIENCE:
                return
            bars.append(_bar())
            bars[0].add_task(text, total=total)
            bars[0].start()
        bars[0].update(bars[0].task_ids[0], completed=done, total=total)

    try:
        yield update
    finally:
        for bar in bars:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
