"""The progress bar: what is being done, loss, ID accuracy, and the time that remains."""

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar"]


class Bar:
    """A `mirepoix.experiment.Progress` for people; where standard error is no terminal it prints a line per stage."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.bar.add_task("starting", total=None, detail="")
        self.finished = 0  # steps of the stages before this one
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

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


class _Lines(logging.Handler):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        self.bar.note(self.format(record))
