"""What is to be done, what became of it, and what is told on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from mirepoix.types import InputError

__all__ = ["Done", "Event", "Work", "in_order"]


@dataclass(frozen=True)
class Work:
    """One piece of work: a call, and the works that must be done before it.

    A work may be done twice when a worker is lost, so it must be idempotent: what takes long is kept in a
    `Store`, and found there the second time.

    Attributes:
        name: What it is called, once among the works.
        function: The call; picklable, so a function of a module and not a ``lambda``.
        arguments: Its arguments; picklable, and small (a path rather than what lies there).
        needs: Names of the works that must be done first. Their values are not handed over: they are in the store.
        weight: How long it takes, in any unit; the works on the longest way through the sweep start first.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Done:
    """What became of a work.

    Attributes:
        status: ``done``; ``failed``, when the function raised or its worker was lost too often; ``skipped``,
            when a work that it needs failed, or the sweep ended before it.
        value: What the function returned; None when it is not done.
        message: Why it is not done; empty when it is.
        seconds: How long the function ran, in the last attempt.
        attempts: How often it was started by `carry_out`; what Ray starts again by itself is not counted.
    """

    status: Literal["done", "failed", "skipped"]
    value: Any = None
    message: str = ""
    seconds: float = 0.0
    attempts: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened to a work, with the counts of the whole sweep after it.

    Attributes:
        kind: ``submitted`` to the engine; ``started`` by a worker, where the engine can tell; ``done``; ``failed``;
            ``retried``, when its worker was lost and it waits again; ``skipped``.
        name: Of the work.
        message: Why it failed, is tried again or was skipped.
        seconds: How long it ran, for a work that ended.
        running: Works that the engine has now, started or not.
        done: Works that are done.
        failed: Works that failed.
        skipped: Works that were skipped.
        total: All works.
    """

    kind: Literal["submitted", "started", "done", "failed", "retried", "skipped"]
    name: str
    message: str
    seconds: float
    running: int
    done: int
    failed: int
    skipped: int
    total: int


def in_order(works: Sequence[Work]) -> tuple[str, ...]:
    """The names of the works, each after those it needs.

    Raises:
        InputError: For a name given twice, a need that is no work, a negative weight, or a cycle.
    """
    known: dict[str, Work] = {}
    for work in works:
        if work.name in known:
            raise InputError(f"two works are called {work.name!r}; a name stands for one work.")
        if not work.weight >= 0:
            raise InputError(f"work {work.name!r}: expected a weight of at least 0, got {work.weight}.")
        known[work.name] = work
    for work in works:
        for need in work.needs:
            if need not in known:
                raise InputError(
                    f"work {work.name!r} needs {need!r}, which is none of the {len(works)} works; "
                    "add that work, or remove the need."
                )
    try:
        return tuple(TopologicalSorter({work.name: work.needs for work in works}).static_order())
    except CycleError as error:
        way = " needs ".join(repr(name) for name in reversed(error.args[1]))
        raise InputError(f"the works wait for each other: {way}; remove one of these needs.") from None
