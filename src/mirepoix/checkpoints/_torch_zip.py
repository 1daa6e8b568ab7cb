"""Torch files: a zip archive of one pickle and one plain member for each storage.

The pickle is read by a machine of our own that calls nothing, and the tensors become places in the file: torch is
not needed, nothing is copied, and a hostile file has no way in but the rules checked here. Python's `zipfile`
is not used because it believes the directory at the end and ignores the headers it repeats: two readers that
believe different copies see different files.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mirepoix.checkpoints._containers import RESAVE, strip_wrappers, unwrap
from mirepoix.checkpoints._entry import MOST_TENSORS, Entry, Layout, Refused, check_name, check_total
from mirepoix.checkpoints._pickle import Storage, TensorRecord, read_pickle
from mirepoix.checkpoints._reader import opened, read_bytes
from mirepoix.checkpoints._tensors import DTYPES
from mirepoix.types import UnsafeCheckpoint

__all__ = ["read_torch_zip"]

LOCAL, CENTRAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
HAS_DESCRIPTOR, ENCRYPTED = 1 << 3, 1 << 0
FULL = 0xFFFFFFFF  # "see the 64-bit field"

SLACK = 1 << 24  # bytes: a small file may hold many small things
CUT = ("pickle-cut", "zip-end", "zip-directory", "zip-offsets", "zip-layout", "zip-storage")
"""Rules that a file breaks by being damaged; the others say that someone made it so."""


class Member(NamedTuple):
    """A file in the archive: its header, its first byte and end, and the end of what follows its bytes."""

    name: str
    header: int
    start: int
    stop: int
    after: int


def read_torch_zip(path: Path, *, container: str | None, allow_expand: bool, strip: bool = True) -> Layout:
    """The places of the tensors in a torch file, without torch."""
    try:
        with opened(path, "a torch file") as (descriptor, state):
            size = state[2]
            members = _members(descriptor, size)
            prefix = _prefix(members)
            _check_byte_order(descriptor, members, prefix)
            pickle = members[f"{prefix}data.pkl"]
            data = read_bytes(descriptor, pickle.start, pickle.stop - pickle.start)
        loaded = read_pickle(data, 3 * size + SLACK)
        del data
        theta = unwrap(loaded, str(path), container, lambda value: isinstance(value, TensorRecord))
        del loaded
        if strip:
            theta = strip_wrappers(theta)
        if len(theta) > MOST_TENSORS:
            raise Refused("max-tensors", f"it has {len(theta)} tensors, expected at most {MOST_TENSORS}")
        entries: dict[str, Entry] = {}
        aliases: dict[str, str] = {}
        first: dict[Entry, str] = {}
        for name, record in theta.items():
            check_name(name)
            entry = entries[name] = _entry(name, record, members, prefix, allow_expand)
            if entry.nbytes and first.setdefault(entry, name) != name:
                aliases[name] = first[entry]
        check_total(first, size)
    except Refused as refused:
        if refused.rule in CUT:
            message = (
                f"{path}: is not a whole torch file ({refused}). It may be cut short by a full disk or a "
                "broken download; write or fetch it again."
            )
        elif refused.rule == "pickle-global":
            message = f"{path}: cannot be opened safely, it holds {refused}. It was not run. {RESAVE}"
        else:
            message = f"{path}: cannot be opened safely, {refused}. {RESAVE}"
        raise UnsafeCheckpoint(refused.rule, message) from refused
    return Layout((path,), (state,), entries, aliases=aliases)


def _entry(
    name: str, record: TensorRecord, members: dict[str, Member], prefix: str, allow_expand: bool
) -> Entry:
    """Where the view lies, if it stays within its storage."""
    code, storage, offset, shape, strides, odd = record
    if code is None:
        raise Refused("tensor-dtype", f"{name!r} has a dtype that is none of {', '.join(DTYPES)}")
    if odd:
        raise Refused("view-odd", f"{name!r} is saved as the conjugate or the negative of its bytes")
    member = _storage(storage, members, prefix)
    itemsize, count = DTYPES[code][1], math.prod(shape)
    length = (member.stop - member.start) // itemsize
    if not count:
        return Entry(code, shape, member.start, member.start)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset + last >= length:
        raise Refused("view-range", f"{name!r} shows element {offset + last} of a storage of {length}")
    expanded = count > last + 1 or any(not n for n, size in zip(strides, shape, strict=True) if size > 1)
    if expanded and not allow_expand:
        raise Refused(
            "view-expanded",
            f"{name!r} repeats its {last + 1} stored elements to {count}, which needs allow_expand=True",
        )
    start = member.start + offset * itemsize
    stop = start + (last + 1) * itemsize
    plain = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # A dimension of size 1 is never stepped along, so its stride says nothing (and may be anything).
    strides = tuple(stride if size > 1 else 0 for stride, size in zip(strides, shape, strict=True))
    in_order = strides == tuple(n if size > 1 else 0 for n, size in zip(plain, shape, strict=True))
    return Entry(code, shape, start, stop, strides=None if in_order else strides)


def _storage(storage: Storage, members: dict[str, Member], prefix: str) -> Member:
    member = members.get(f"{prefix}data/{storage.key}")
    size = storage.length * (DTYPES[storage.code][1] if storage.code else 1)
    if member is None or member.stop - member.start != size:
        got = "is not there" if member is None else f"has {member.stop - member.start}"
        raise Refused("zip-storage", f"expected {size} bytes in storage {storage.key[:60]!r}, which {got}")
    return member


def _prefix(members: dict[str, Member]) -> str:
    """The folder that all members are in, with its slash."""
    prefix = next(iter(members), "").partition("/")[0] + "/"
    if not all(name.startswith(prefix) for name in members) or f"{prefix}data.pkl" not in members:
        raise Refused("zip-layout", "expected one folder with data.pkl in the archive, got something else")
    if f"{prefix}constants.pkl" in members:
        raise Refused("torchscript", "it is a TorchScript program, which is more than weights")
    return prefix


def _check_byte_order(descriptor: int, members: dict[str, Member], prefix: str) -> None:
    member = members.get(f"{prefix}byteorder")
    if (
        member is not None
        and read_bytes(descriptor, member.start, min(member.stop - member.start, 16)) != b"little"
    ):
        raise Refused("byte-order", "its numbers are not little endian")


# The archive


def _members(descriptor: int, size: int) -> dict[str, Member]:
    """The members by name; every one stored plainly, described alike in both places, and apart from the others."""
    start, stop, count = _directory(descriptor, size)
    members: dict[str, Member] = {}
    for name, header, length, flags in _listed(read_bytes(descriptor, start, stop - start), count):
        if name in members:
            raise Refused("zip-duplicate", f"its archive has the member {name[:60]!r} twice")
        members[name] = _member(descriptor, name, header, length, flags, start)
    end = 0
    for member in sorted(members.values(), key=lambda member: member.header):
        if member.header < end:
            raise Refused("zip-overlap", f"its member {member.name[:60]!r} begins inside another one")
        end = member.after
    return members


def _directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """First byte and end of the directory, and how many members it lists."""
    tail = read_bytes(descriptor, max(0, size - 22 - 20 - 56), 22 + 20 + 56)
    if len(tail) < 22 or tail[-22:-18] != END or tail[-2:] != b"\0\0":
        raise Refused("zip-end", "its archive has no end")
    numbers = struct.unpack("<HHHHII", tail[-18:-2])
    disk, first_disk, here, count, length, start = numbers
    end = size - 22
    if len(tail) == 98 and tail[56:60] == LOCATOR64:
        _, place, disks = struct.unpack("<IQI", tail[60:76])
        end = size - 98
        if tail[:4] != END64 or place != end or disks != 1:
            raise Refused("zip-directory", "its archive has a 64-bit end that is somewhere else")
        record, _, _, disk, first_disk, here, count, length, start = struct.unpack("<QHHIIQQQQ", tail[4:56])
        for short, long, full in zip(
            numbers[2:], (here, count, length, start), (0xFFFF, 0xFFFF, FULL, FULL), strict=True
        ):
            if short not in (long, full) or record != 44:
                raise Refused("zip-headers", "its archive has two ends that differ")
    if disk or first_disk or here != count or start + length != end:
        raise Refused("zip-directory", "its archive has a directory that is not where it should be")
    return start, end, count


def _listed(directory: bytes, count: int) -> Iterator[tuple[str, int, int, int]]:
    """Name, place of the header, bytes and flags of each member the directory lists."""
    place = 0
    for _ in range(count):
        fixed = directory[place : place + 46]
        if len(fixed) < 46 or not fixed.startswith(CENTRAL):
            raise Refused("zip-directory", "its archive has a directory that breaks off")
        flags, method, packed, length, names, extras, comment, disk, header = (
            *struct.unpack_from("<HH", fixed, 8), *struct.unpack_from("<IIHHHH", fixed, 20),
            *struct.unpack_from("<I", fixed, 42),
        )  # fmt: skip
        end = place + 46 + names + extras + comment
        if end > len(directory):
            raise Refused("zip-directory", "its archive has a directory that breaks off")
        name = _member_name(directory[place + 46 : place + 46 + names])
        extra = directory[place + 46 + names : end - comment]
        length, packed, header = _wide(name, extra, (length, packed, header))
        if method or packed != length or flags & ENCRYPTED:
            raise Refused("zip-stored", f"its members are compressed or encrypted ({name[:60]!r})")
        if disk:
            raise Refused("zip-directory", "its archive goes on in another file")
        yield name, header, length, flags
        place = end
    if place != len(directory):
        raise Refused("zip-directory", "its archive has more in its directory than it counts")


def _member(descriptor: int, name: str, header: int, length: int, flags: int, directory: int) -> Member:
    """The member whose own header is at a place, if that agrees with the directory."""
    encoded = name.encode()
    local = read_bytes(descriptor, header, 30 + len(encoded)) if header < directory else b""
    if len(local) < 30 or not local.startswith(LOCAL):
        raise Refused("zip-offsets", f"its member {name[:60]!r} is not where the directory says")
    flags_here, method, packed, length_here, names, extras = (
        *struct.unpack("<HH", local[6:10]), *struct.unpack("<IIHH", local[18:30])
    )  # fmt: skip
    start = header + 30 + names + extras
    stop = after = start + length
    if stop > directory:
        raise Refused("zip-offsets", f"its member {name[:60]!r} goes on beyond the archive")
    if FULL in (packed, length_here):
        extra = read_bytes(descriptor, header + 30 + names, extras)
        length_here, packed = _wide(name, extra, (length_here, packed))
    described = not flags_here & HAS_DESCRIPTOR
    if not described:
        # The sizes come after the bytes; those before them are then unknown, that is 0, or the same.
        if (packed, length_here) == (0, 0):
            packed = length_here = length
        trailer = read_bytes(descriptor, stop, 24)
        for layout in ("<4sIII", "<4sIQQ"):
            fields = struct.unpack_from(layout, trailer.ljust(24, b"\0"))
            if fields[0] == DESCRIPTOR and fields[2:] == (length, length):
                described, after = True, stop + struct.calcsize(layout)
                break
    if after > directory:
        raise Refused("zip-offsets", f"its member {name[:60]!r} goes on beyond the archive")
    same_name = names == len(encoded) and local[30:] == encoded
    if (
        not described
        or not same_name
        or (flags_here, method, packed, length_here) != (flags, 0, length, length)
    ):
        raise Refused("zip-headers", f"its member {name[:60]!r} is described in two ways")
    return Member(name, header, start, stop, after)


def _member_name(text: bytes) -> str:
    try:
        name = text.decode()
    except UnicodeDecodeError as error:
        raise Refused("zip-directory", "its archive has a name that is not text") from error
    if "\0" in name or len(text) > 4096:
        raise Refused("zip-directory", "its archive has a name with NUL or of more than 4096 bytes")
    return name


def _wide(name: str, extra: bytes, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers, those that are full taken from the 64-bit field in the extra part of a header."""
    if FULL not in numbers:
        return numbers
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + length]
            if len(wide) == length and length >= 8 * numbers.count(FULL):
                values: Iterator[Any] = (
                    value for (value,) in struct.iter_unpack("<Q", wide[: length // 8 * 8])
                )
                return tuple(next(values) if number == FULL else number for number in numbers)
            break
        place += 4 + length
    raise Refused("zip-directory", f"its member {name[:60]!r} has no 64-bit sizes where it needs them")
