"""Members as flat pieces of arrays, wherever they lie: in files, in NumPy or in torch."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from mirepoix.checkpoints import Checkpoint, open_weights
from mirepoix.checkpoints._tensors import DTYPES, RawTensor, raw
from mirepoix.merging._rule import Array
from mirepoix.types import InputError

__all__ = ["FLOAT8", "Source", "is_float", "narrow", "open_source", "round_to_odd", "wide_dtype", "widen"]

FLOAT8 = {"F8_E4M3": (4, 7), "F8_E5M2": (5, 15)}
"""Bits and bias of the exponent."""

WIDE: dict[str, type[np.floating[Any]]] = {
    "F64": np.float64,
    "F32": np.float64,
    "F16": np.float32,
    "BF16": np.float32,
    "F8_E4M3": np.float32,
    "F8_E5M2": np.float32,
}
"""The dtype to compute in, by the dtype of a tensor."""

HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
"""Names of output and input embeddings in models of language."""

STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}


def is_float(code: str) -> bool:
    """Whether tensors of this dtype can be averaged."""
    return code in WIDE


def wide_dtype(codes: Sequence[str]) -> type[np.floating[Any]]:
    """The dtype to compute in for members of these dtypes."""
    return max((WIDE[code] for code in codes), key=lambda dtype: np.dtype(dtype).itemsize)


def widen(code: str, stored: Array, out: Array) -> Array:
    """Write the values of stored entries into ``out``, float32 or float64, exactly."""
    if code == "BF16" and out.dtype == np.float32:
        np.left_shift(stored, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    elif code == "BF16":
        out[...] = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif code in FLOAT8:
        out[...] = _float8(code)[stored]
    else:
        out[...] = stored
    return out


def narrow(code: str, wide: Array) -> Array:
    """The entries as stored: rounded once, to the nearest, ties to even; overflow becomes infinity."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if code != "BF16":
            return wide.astype(STORED[code], copy=False)
        if wide.dtype == np.float64:
            wide = round_to_odd(wide)
        bits = wide.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        # The carry must not turn a NaN into a number or an infinity.
        return np.where(np.isnan(wide), np.uint32(0x7FC0) | (bits >> np.uint32(16)), rounded).astype("<u2")


def round_to_odd(wide: Array) -> Array:
    """Float32 such that rounding it to 16 bits is the same as rounding the float64 directly."""
    near = wide.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.int32)
    # Truncate towards zero, then set the last bit where something was cut off: no tie is made by rounding twice.
    truncated = np.where(np.abs(back) > np.abs(wide), bits - 1, bits)
    inexact = (back != wide) & ~np.isnan(wide) & ~np.isinf(near)
    return np.where(inexact, truncated | 1, bits).astype(np.int32).view(np.float32)


@cache
def _float8(code: str) -> Array:
    """The value of each of the 256 bytes."""
    exponent_bits, bias = FLOAT8[code]
    mantissa_bits = 7 - exponent_bits
    values = np.empty(256, np.float32)
    for byte in range(256):
        sign = -1.0 if byte & 0x80 else 1.0
        exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1)
        mantissa = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
        last = exponent == (1 << exponent_bits) - 1
        if code == "F8_E5M2" and last:
            values[byte] = sign * math.inf if mantissa == 0 else math.nan
        elif code == "F8_E4M3" and byte & 0x7F == 0x7F:
            values[byte] = math.nan  # this format has no infinity
        else:
            scale = 1 - bias if exponent == 0 else exponent - bias
            values[byte] = sign * math.ldexp(mantissa + (exponent != 0), scale)
    return values


class Source:
    """One member: names, dtypes and shapes, and any piece of any tensor.

    Attributes:
        label: What to call it in messages.
        theta: The weights, lazy or in memory.
        names: All names after renaming, in the order of the member, aliases included.
        tied: Names of tied weights, seen in the file or said by the model's configuration, each with the name that
            holds its values. They can be read like others, in ``names`` or not.
    """

    def __init__(self, theta: Mapping[str, Any], label: str, rename: Mapping[str, str] | None = None) -> None:
        self.label = label
        self.theta = theta
        wrong = next((name for name in theta if not isinstance(name, str)), None)
        if wrong is not None:
            raise InputError(f"{label}: expected names that are text, got {wrong!r}.")
        self._old = _renamed(theta, rename or {}, label)
        self.names = list(self._old)
        self.checkpoint = theta if isinstance(theta, Checkpoint) else None
        self.tied: dict[str, str] = {}
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        if self.checkpoint is not None:
            new = {old: name for name, old in self._old.items()}
            self.tied = {new[alias]: new[name] for alias, name in self.checkpoint.aliases.items()}
            self.tied |= _tied_by_configuration(self.checkpoint.config or {}, self.names)
            codes, shapes = self.checkpoint.codes, self.checkpoint.shapes
            self._kinds = {name: (codes[old], shapes[old]) for name, old in self._old.items()}
        self._last: tuple[str, RawTensor] | None = None
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._old

    def code(self, name: str) -> str:
        """The dtype, as a code of safetensors."""
        return self._kind(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape."""
        return self._kind(name)[1]

    def place(self, name: str) -> tuple[int, int] | None:
        """Where a tensor lies in the files of this member; None for what does not lie in a file in order."""
        if self.checkpoint is None or name not in self._old:
            return None
        return self.checkpoint.place(self._old[name])

    def stored(
        self, name: str, start: int, stop: int, buffer: memoryview | None = None, *, beyond: bool = False
    ) -> Array:
        """Entries as they are stored (bfloat16 as uint16); with a ``buffer``, valid until it is used again.

        With ``beyond``, entries may be those of tensors that follow in the file.
        """
        name = name if name in self._old else self.tied[name]
        code = self._kind(name)[0]
        size = DTYPES[code][1]
        first, count = start * size, (stop - start) * size
        if self.checkpoint is None:
            data = self._content(name).data[first : first + count]
        else:
            data = memoryview(bytearray(count)) if buffer is None else buffer[:count]
            self.checkpoint.read_into(self._old[name], first, data, beyond=beyond)
        return np.frombuffer(data, STORED.get(code, "u1"))

    def wide(
        self,
        name: str,
        start: int,
        stop: int,
        dtype: type[np.floating[Any]] | None = None,
        out: Array | None = None,
    ) -> Array:
        """Entries ``start`` to ``stop`` of a float tensor as a new flat array of float64 or float32."""
        code = self.code(name)
        if out is None:
            out = np.empty(stop - start, dtype or WIDE[code])
        return widen(code, self.stored(name, start, stop), out)

    def bytes(self, name: str) -> memoryview:
        """The whole content of a tensor."""
        name = name if name in self._old else self.tied[name]
        if self.checkpoint is not None:
            return self.checkpoint.raw(self._old[name]).data
        return self._content(name).data

    def close(self) -> None:
        """Let go of what is open."""
        self._last = None
        if self.checkpoint is not None:
            self.checkpoint.close()

    def _kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self._old:
            name = self.tied[name]
        if name not in self._kinds:
            content = self._content(name)
            self._kinds[name] = content.code, content.shape
        return self._kinds[name]

    def _content(self, name: str) -> RawTensor:
        # One tensor is kept, since all its pieces are asked for together and conversion may copy.
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = (name, raw(f"{name!r} in {self.label}", self.theta[self._old[name]]))
            return self._last[1]


def _tied_by_configuration(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The head of a language model that is not written because it is the embedding."""
    # A model of images and language keeps the settings of its language part one level deeper.
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    tied = any(part.get("tie_word_embeddings") is True for part in parts)
    if not tied or any(name in names for name in HEADS):
        return {}
    embedding = next((name for name in names if name.endswith(EMBEDDINGS)), None)
    return {} if embedding is None else {HEADS[0]: embedding}


def _renamed(names: Iterable[str], rename: Mapping[str, str], label: str) -> dict[str, str]:
    """New name to old name, after every pattern in turn."""
    new: dict[str, str] = {}
    for name in names:
        changed = name
        for pattern, replacement in rename.items():
            try:
                changed = re.sub(pattern, replacement, changed)
            except re.error as error:
                raise InputError(
                    f"rename: {pattern!r} -> {replacement!r} is not a substitution: {error}."
                ) from error
        if changed in new:
            raise InputError(f"{label}: rename makes {new[changed]!r} and {name!r} both {changed!r}.")
        new[changed] = name
    return new


def open_source(
    weights: Mapping[str, Any] | str | os.PathLike[str],
    label: str,
    *,
    rename: Mapping[str, str] | None = None,
    **options: Any,
) -> Source:
    """A member from weights in memory, an opened checkpoint, or a path (``options`` go to `open_weights`)."""
    if isinstance(weights, Mapping):
        return Source(weights, str(weights.path) if isinstance(weights, Checkpoint) else label, rename)
    if isinstance(weights, str | os.PathLike):
        return Source(open_weights(weights, framework="numpy", **options), str(weights), rename)
    raise InputError(
        f"{label}: expected weights by name or the path of a file, got {type(weights).__name__}."
    )
