"""The safetensors format: eight bytes of length, a JSON header, then the data of all tensors.

Read here rather than by the reference library for three reasons: no framework is needed, a bfloat16 tensor
has bytes even where it has no NumPy dtype, and the reference accepts a header that names a tensor twice.

The header is scanned by its own grammar, names to (dtype, shape, data_offsets), and nothing else is ever
built: a general JSON parser would turn a hostile header into objects of thirty times its size first.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._entry import MOST_TENSORS, Entry, Layout, Refused, check_name
from mirepoix.checkpoints._reader import opened, read_bytes
from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.types import UnsafeCheckpoint

__all__ = ["ALIASES", "read_safetensors"]

LARGEST_HEADER = 100_000_000  # bytes, the limit of the format
ALIASES = "mirepoix.aliases"  # metadata that names tensors written once: {name: the name it is written under}

SPACE = rb"[ \t\n\r]*+"
NUMBER = rb"(?:0|[1-9][0-9]{0,18})"  # no offset, and no dimension, has more than 19 digits
NUMBERS = SPACE + rb"(?:%b%b(?:,%b%b%b){0,63}+)?+" % (NUMBER, SPACE, SPACE, NUMBER, SPACE)


def _pattern(text: bytes) -> re.Pattern[bytes]:
    """A pattern in which one space stands for any space."""
    return re.compile(SPACE + text.replace(b" ", SPACE))


# What every writer writes, read in one step; any other entry goes through `_Scanner`, which also says what is wrong.
USUAL = _pattern(
    rb'"([^"\\\x00-\x1f]*+)" : \{ "dtype" : "([A-Z0-9_]++)" , "shape" : \[(' + NUMBERS.replace(b" ", rb"\x20")
    + rb')\] , "data_offsets" : \[ (' + NUMBER + rb") , (" + NUMBER + rb") \] \}"
)  # fmt: skip
TEXT = _pattern(rb'"((?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+)"')
LIST = _pattern(rb"\[(" + NUMBERS.replace(b" ", rb"\x20") + rb")\]")
MARK = _pattern(rb"([{}:,])")
END = re.compile(SPACE + rb"\Z")


def read_safetensors(path: Path) -> Layout:
    """Read and check the header of a file."""
    try:
        with opened(path, "a safetensors file") as (descriptor, state):
            text = _header_text(descriptor, state[2])
        entries, metadata = _parse(text)
        _check_cover(entries, 8 + len(text), state[2])
        aliases = _aliases(entries, metadata)
    except Refused as refused:
        raise UnsafeCheckpoint(
            refused.rule,
            f"{path}: is not a whole safetensors file: {refused}. It may be cut short by a full disk or a "
            "broken download; write or fetch it again.",
        ) from refused
    for alias, name in aliases.items():
        entries[alias] = entries[name]
    return Layout((path,), (state,), entries, metadata, aliases)


def _header_text(descriptor: int, size: int) -> bytes:
    start = read_bytes(descriptor, 0, 8)
    if len(start) < 8:
        raise Refused("header-length", f"expected a header, got {size} bytes in all")
    (length,) = struct.unpack("<Q", start)
    if length > min(LARGEST_HEADER, size - 8):
        raise Refused(
            "header-length", f"expected a header of {length} bytes, got {size - 8} bytes after its length"
        )
    text = read_bytes(descriptor, 8, length)
    if len(text) < length or not text.startswith(b"{"):
        raise Refused("header-json", "expected a header in JSON, got other bytes")
    if not text.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for begin in range(
                0, length, 1 << 16
            ):  # in parts: the whole text may take four bytes per character
                decoder.decode(text[begin : begin + (1 << 16)], final=begin + (1 << 16) >= length)
        except UnicodeDecodeError as error:
            raise Refused("header-text", f"expected a header in UTF-8, got other bytes: {error}") from error
    return text


def _parse(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] | None = None
    shapes: dict[bytes, tuple[int, ...]] = {}  # the same few, again and again
    scanner = _Scanner(text)
    scanner.mark(b"{")
    more = not scanner.found(b"}")
    while more:
        usual = USUAL.match(text, scanner.place)
        if usual and usual[1] != b"__metadata__":
            scanner.place = usual.end()
            name = usual[1].decode()
            fields: tuple[str, bytes, tuple[bytes, ...]] = (usual[2].decode(), usual[3], (usual[4], usual[5]))
        else:
            name = scanner.text()
            scanner.mark(b":")
            if name == "__metadata__":
                if metadata is not None:
                    raise Refused("header-duplicate", "the header names a tensor or a field twice")
                metadata = scanner.metadata()
                more = scanner.mark(b",}") == b","
                continue
            check_name(name)
            fields = scanner.fields(name)
        if name in entries:
            raise Refused("header-duplicate", f"the header names a tensor or a field twice: {name!r}")
        check_name(name)
        entries[name] = _entry(name, *fields, 8 + len(text), shapes)
        if len(entries) > MOST_TENSORS:
            raise Refused("max-tensors", f"expected at most {MOST_TENSORS} tensors, got more")
        more = scanner.mark(b",}") == b","
    scanner.end()
    return entries, metadata or {}


def _entry(
    name: str,
    code: str,
    dimensions: bytes,
    offsets: tuple[bytes, ...],
    data: int,
    shapes: dict[bytes, tuple[int, ...]],
) -> Entry:
    if code not in DTYPES:
        raise Refused(
            "header-dtype", f"{name!r} has dtype {code[:20]!r}, expected one of {', '.join(DTYPES)}"
        )
    shape = shapes.get(dimensions)
    if shape is None:
        shape = tuple(map(int, dimensions.split(b","))) if dimensions.strip() else ()
        shapes[dimensions] = shape
    start, stop = map(int, offsets)
    if stop - start != math.prod(shape) * DTYPES[code][1]:
        raise Refused(
            "header-size",
            f"{name!r} has {stop - start} bytes, which is not shape {shape} of {DTYPES[code][0]}",
        )
    return Entry(code, shape, start + data, stop + data)


def _check_cover(entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Refuse holes, overlaps, and an end that is not the end of the file."""
    end = data
    for start, stop, name in sorted((entry.start, entry.stop, name) for name, entry in entries.items()):
        if start != end:
            raise Refused(
                "header-cover",
                f"expected {name!r} to begin at byte {end - data} of the data, got {start - data}",
            )
        end = stop
    if end != size:
        raise Refused("header-cover", f"expected {end} bytes in all, got {size}")


def _aliases(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> dict[str, str]:
    if ALIASES not in metadata:
        return {}
    scanner = _Scanner(metadata[ALIASES].encode())
    try:
        aliases = scanner.metadata()
        scanner.end()
    except Refused as refused:
        raise Refused("aliases", f"its metadata {ALIASES!r} is not names to names: {refused}") from refused
    for alias, name in aliases.items():
        check_name(alias)
        if alias in entries or name not in entries:
            raise Refused(
                "aliases",
                f"its metadata {ALIASES!r} calls {name[:60]!r} also {alias[:60]!r}, which cannot be",
            )
    return aliases


class _Scanner:
    """Reads a header piece by piece, for the entries that are unusual or wrong."""

    def __init__(self, header: bytes) -> None:
        self.header, self.place = header, 0

    def found(self, mark: bytes) -> bool:
        """Whether the next sign is this one; then it is passed."""
        match = MARK.match(self.header, self.place)
        if match is None or match[1] != mark:
            return False
        self.place = match.end()
        return True

    def mark(self, expected: bytes) -> bytes:
        """Pass the next sign, one of those expected."""
        match = MARK.match(self.header, self.place)
        if match is None or match[1] not in expected:
            raise self._wrong(" or ".join(repr(chr(sign)) for sign in expected))
        self.place = match.end()
        return match[1]

    def text(self) -> str:
        """Pass a text in quotes."""
        match = TEXT.match(self.header, self.place)
        if match is None:
            raise self._wrong("a text")
        self.place = match.end()
        text: str = match[1].decode()
        if "\\" not in text:
            return text
        text = json.loads(f'"{text}"')
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise Refused("header-text", f"the text {text[:60]!r} has half a character")
        return text

    def metadata(self) -> dict[str, str]:
        """Pass a mapping of texts to texts."""
        texts: dict[str, str] = {}
        self.mark(b"{")
        more = not self.found(b"}")
        while more:
            key = self.text()
            self.mark(b":")
            if TEXT.match(self.header, self.place) is None:
                raise Refused(
                    "header-metadata", f"expected metadata of names and texts, got another {key[:60]!r}"
                )
            if key in texts:
                raise Refused("header-duplicate", f"the metadata has {key[:60]!r} twice")
            texts[key] = self.text()
            more = self.mark(b",}") == b","
        return texts

    def fields(self, name: str) -> tuple[str, bytes, tuple[bytes, ...]]:
        """Pass what the header says of one tensor, in any order."""
        found: dict[str, Any] = {}
        self.mark(b"{")
        more = not self.found(b"}")
        while more:
            key = self.text()
            self.mark(b":")
            if key in found:
                raise Refused("header-duplicate", f"{name!r} has the field {key[:60]!r} twice")
            if key == "dtype":
                found[key] = self.text()
            elif key in ("shape", "data_offsets"):
                match = LIST.match(self.header, self.place)
                if match is None:
                    raise Refused(
                        "header-shape",
                        f"{name!r} has a {key} that is not a list of (at most 64) integers from 0",
                    )
                self.place, found[key] = match.end(), match[1]
            else:
                raise Refused("header-keys", f"{name!r} has an unknown field {key[:60]!r}")
            more = self.mark(b",}") == b","
        if len(found) < 3:
            raise Refused("header-keys", f"{name!r} lacks one of dtype, shape, data_offsets")
        offsets = tuple(found["data_offsets"].split(b","))
        if len(offsets) != 2:
            raise Refused("header-shape", f"{name!r} has data_offsets that are not two integers")
        return found["dtype"], found["shape"], offsets

    def end(self) -> None:
        """Nothing but space may be left."""
        if not END.match(self.header, self.place):
            raise self._wrong("nothing more")

    def _wrong(self, expected: str) -> Refused:
        return Refused("header-json", f"expected {expected} at byte {self.place} of the header")
