"""A shorter way into verbs that are done in a fraction of a second.

Typer reads options through pydantic, whose import alone takes as long as averaging 500 MB. Here a command line in
which everything is well-formed is read from the same signature in a millisecond; whatever is not (``--help``, an
unknown option, a word that is no number) is left to typer, which knows how to say so.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

__all__ = ["parsed"]


def parsed(function: Callable[..., None], words: Sequence[str]) -> dict[str, Any] | None:
    """The arguments that typer would give the function, or None where typer must look itself."""
    options, argument = _signature(function)
    found: dict[str, Any] = {}
    rest = []
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in options:
            return None
        name, kind, many = options[flag]
        if kind is bool:
            if equals:
                return None
            found[name] = True
            continue
        if not equals:
            if i == len(words):
                return None
            value, i = words[i], i + 1
        try:
            converted = _converted(value, kind)
        except ValueError:
            return None
        found[name] = [*found.get(name, []), converted] if many else converted
    if argument is not None and rest:
        name, kind = argument
        found[name] = [_converted(word, kind) for word in rest]
    elif rest:
        return None
    required = {name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty}
    return found if required <= found.keys() else None


def _signature(
    function: Callable[..., None],
) -> tuple[dict[str, tuple[str, Any, bool]], tuple[str, Any] | None]:
    """Flags with name, type and whether they may be repeated; and the list of words, if there is one."""
    options: dict[str, tuple[str, Any, bool]] = {}
    argument = None
    for name, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        declared, info = get_args(hint)
        kind, many = _kind(declared)
        if isinstance(info, ArgumentInfo):
            argument = (name, kind)
        elif isinstance(info, OptionInfo):
            flags = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
            for flag in flags or ["--" + name.replace("_", "-")]:
                options[flag] = (name, kind, many)
    return options, argument


def _kind(declared: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if get_origin(declared) in (Union, types.UnionType):
        (declared,) = (part for part in get_args(declared) if part is not type(None))
    if get_origin(declared) is list:
        return get_args(declared)[0], True
    return declared, False


def _converted(word: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if word not in get_args(kind):
            raise ValueError(word)
        return word
    if kind in (str, Path, int, float):
        return kind(word)
    raise ValueError(kind)
