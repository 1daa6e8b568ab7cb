"""The progress bar: what is being done, loss, ID accuracy, and the time that remains."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from mirepoix.cluster import Event

__all__ = ["Bar", "SweepBar"]


QUIET = 30.0  # seconds without a line where standard error is no terminal


class Bar:
    """A `mirepoix.experiment.Progress` for people; where standard error is no terminal it prints a line per stage."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.bar = _bar(self.console, SpinnerColumn())
        self.task = self.bar.add_task("starting", total=None, detail="")
        self.finished = 0  # steps of the stages before this one
        self.told = time.monotonic()
        self.of_stage = 0

    def __enter__(self) -> Bar:
        self.bar.start()
        handler = _Lines(self)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("mirepoix").addHandler(handler)
        logging.getLogger("mirepoix").setLevel(logging.INFO)
        self.handler = handler
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("mirepoix").removeHandler(self.handler)
        self.bar.stop()

    def plan(self, steps: int) -> None:
        """The whole job has this many training steps."""
        self.bar.update(self.task, total=steps)

    def stage(self, text: str, steps: int = 0) -> None:
        """Name the piece of work, and count the one before as done."""
        self.finished += self.of_stage
        self.of_stage = steps
        self.told = time.monotonic()
        self.bar.update(self.task, description=escape(text), completed=self.finished, detail="")
        if not self.live:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def images(self, done: int, total: int, text: str) -> None:
        """Images read so far."""
        self.bar.update(self.task, detail=f"{text} {done:,}/{total:,}")

    def training(self, step: int, steps: int, loss: float, id_accuracy: float | None) -> None:
        """A training step was made."""
        accuracy = "" if id_accuracy is None else f"  ID accuracy {100 * id_accuracy:.1f} %"
        self.bar.update(
            self.task,
            completed=self.finished + step,
            detail=f"step {step}/{steps}  loss {loss:.3f}{accuracy}",
        )

    def step(self, done: int, steps: int, text: str) -> None:
        """A step of a training that tells of something else than loss and accuracy."""
        self.bar.update(
            self.task, completed=self.finished + done, detail=escape(f"step {done:,}/{steps:,}  {text}")
        )
        if not self.live and time.monotonic() - self.told > QUIET:
            self.told = time.monotonic()
            self.console.print(
                f"  step {done:,}/{steps:,}  {text}", highlight=False, markup=False, soft_wrap=True
            )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


class SweepBar:
    """Progress of a sweep: works done, what is being done, and the time that remains.

    Where standard error is no terminal it prints a line for every work that ends.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.running: dict[str, None] = {}
        self.bar = _bar(self.console)
        self.task = self.bar.add_task("sweep", total=None, detail="")

    def __enter__(self) -> SweepBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def event(self, event: Event) -> None:
        """Something happened to a work."""
        if event.kind in ("submitted", "started"):
            if event.kind == "started":
                self.running[event.name] = None
            self.show(event)
            return
        self.running.pop(event.name, None)
        self.show(event)
        count = f"[{event.done + event.failed + event.skipped}/{event.total}]"
        if event.kind == "done":
            if not self.live:
                self.print(f"{count} {event.name} ({event.seconds:.0f} s)")
        else:
            self.print(f"{count} {event.kind}: {event.name}: {event.message}")

    def show(self, event: Event) -> None:
        """Redraw the line."""
        bad = event.failed + event.skipped
        detail = f"{event.done} of {event.total} done" + (f", {bad} failed or skipped" if bad else "")
        if self.running:
            detail += f"; {escape(next(reversed(self.running)))}"
        ended = event.done + event.failed + event.skipped
        self.bar.update(self.task, total=event.total, completed=ended, detail=detail)

    def print(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _bar(console: Console, *first: ProgressColumn) -> Progress:
    """A line with a description, a bar, the time that remains and a detail; nothing where there is no terminal."""
    return Progress(
        *first,
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Lines(logging.Handler):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self.bar.note(self.format(record))
