"""What a check finds: faults by file, warnings, facts; and the words for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mirepoix.merging._inputs import Source
from mirepoix.merging._lora_adapter import some

__all__ = ["Fault", "Findings", "config_of", "listed", "nbytes", "size_text", "tensors", "usual"]


class Fault(NamedTuple):
    """Why weights cannot be averaged.

    Attributes:
        member: The file, or None where it is all of them together.
        what: What is wrong with it.
        advice: What to do about it.
    """

    member: str | None
    what: str
    advice: str


@dataclass
class Findings:
    """What is found on the way.

    Attributes:
        faults: What is in the way of an average.
        warnings: What is not, but may change the result.
        facts: What was seen.
        disagree: Whether no structure is that of most members, so that none of them is at fault.
    """

    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    disagree: bool = False

    def fault(self, source: Source | None, what: str, advice: str) -> None:
        """Add one."""
        self.faults.append(Fault(None if source is None else source.label, what, advice))


def usual(sources: Sequence[Source], key: Callable[[Source], Hashable]) -> tuple[list[Source], str]:
    """The largest group of equal members (the first of several), and what to call it.

    Most members together are "the other 19"; otherwise nobody is the odd one out, and a group goes by its first.
    """
    groups: dict[Hashable, list[Source]] = {}
    for source in sources:
        groups.setdefault(key(source), []).append(source)
    largest = max(groups.values(), key=len)
    if len(groups) == 1:
        return largest, "the members"
    if len(largest) * 2 > len(sources):
        return largest, f"the other {len(largest)}"
    more = f" (and {len(largest) - 1} more)" if len(largest) > 1 else ""
    return largest, f"{largest[0].label}{more}"


def config_of(source: Source) -> dict[str, Any]:
    """The settings beside a file, if there are any."""
    return getattr(source.checkpoint, "config", None) or {}


def nbytes(source: Source) -> int:
    """Bytes of all tensors of a file."""
    assert source.checkpoint is not None
    return source.checkpoint.nbytes


# Words


def size_text(count: int) -> str:
    """A number of bytes for people."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"


def tensors(names: Sequence[str]) -> str:
    """One name, or how many there are with some of them."""
    return repr(names[0]) if len(names) == 1 else f"{len(names)} tensors ({some(list(names), 3)})"


def listed(labels: Sequence[str]) -> str:
    """Names of files, not all if they are many."""
    if len(labels) > 4:
        return f"{', '.join(labels[:3])} and {len(labels) - 3} more"
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
