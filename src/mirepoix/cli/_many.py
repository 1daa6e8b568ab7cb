"""Options that take several files at once, as a shell hands them over for ``--ood ood/*.npz``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["taking_many"]


def taking_many(*options: str) -> type[TyperCommand]:
    """A command in which each of these options takes all words up to the next option.

    Without it, the second file would be read as an argument of the command, without a word.
    """

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, _repeated(args, options))

    return Command


def _repeated(args: list[str], options: tuple[str, ...]) -> list[str]:
    """The option before each of its words."""
    spread: list[str] = []
    current, first = "", False
    for word in args:
        if word.startswith("-"):
            current = word if word in options else ""
            first = bool(current)
        elif current:
            if not first:
                spread.append(current)
            first = False
        spread.append(word)
    return spread
