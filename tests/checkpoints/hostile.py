"""Files that break one rule of the readers each, and the pieces they are built of.

`CASES` maps a name to (rule, maker): the maker puts the case into an empty folder and returns the path to open.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Safetensors


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with a header given as JSON or as its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def field(start: int = 0, stop: int = 4, dtype: object = "F32", shape: object = (1,)) -> dict[str, object]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# Pickles, opcode by opcode


def text(value: str) -> bytes:
    """A text on the stack."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    """An integer on the stack."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    """What a pickle imports."""
    return b"c" + f"{module}\n{attribute}\n".encode()


def sizes(values: Sequence[int]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    """A reference to the bytes of a member."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"


def tensor(
    shape: Sequence[int] = (4,),
    strides: Sequence[int] = (1,),
    offset: int = 0,
    place: bytes = storage(),
    extra: bytes = b"",
) -> bytes:
    """A tensor, as torch pickles it."""
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + place + integer(offset) + sizes(shape) + sizes(strides)
        + b"\x89" + name("collections", "OrderedDict") + b")R" + extra + b"tR"
    )  # fmt: skip


def mapping(*items: tuple[str, bytes]) -> bytes:
    """A dict."""
    return b"}(" + b"".join(text(key) + value for key, value in items) + b"u"


def whole(body: bytes, protocol: int = 2) -> bytes:
    """A pickle, with its beginning and end."""
    return bytes([0x80, protocol]) + body + b"."


# Zip archives, with what may be wrong in them


def archive(
    members: Sequence[tuple[str, bytes]],
    *,
    method: int = 0,
    flags: int = 0,
    local_name: Callable[[str], str] = lambda name: name,
    local_size: Callable[[int], int] = lambda size: size,
    listed_size: Callable[[int], int] = lambda size: size,
    place: Callable[[int], int] = lambda place: place,
    wide: bool = False,
    disk: int = 0,
    comment: bytes = b"",
    count: int | None = None,
    descriptor: Callable[[int], bytes] | None = None,
    also: Sequence[tuple[str, int, int]] = (),
) -> bytes:
    """A zip archive of stored members, honest unless told otherwise; ``also`` is in the directory alone."""
    body, directory = b"", b""
    listing: list[tuple[bytes, int, int]] = []
    for member, data in members:
        header = place(len(body))
        local, listed = local_name(member).encode(), member.encode()
        size, other = local_size(len(data)), listed_size(len(data))
        body += struct.pack("<4s5HIIIHH", b"PK\3\4", 20, flags, method, 0, 0, 0, size, size, len(local), 0)
        body += local + data + (descriptor(len(data)) if descriptor else b"")
        listing.append((listed, other, header))
    for listed, other, header in [*listing, *((name.encode(), size, header) for name, size, header in also)]:
        extra, shown = b"", (other, other, header)
        if wide:
            extra, shown = struct.pack("<HHQQQ", 1, 24, other, other, header), (0xFFFFFFFF,) * 3
        directory += struct.pack("<4s6HIIIHHHHHII", b"PK\1\2", 20, 20, flags, method, 0, 0, 0, *shown[:2], len(listed),
                                 len(extra), 0, disk, 0, 0, shown[2]) + listed + extra  # fmt: skip
    number = len(members) + len(also) if count is None else count
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, number, number, len(directory), len(body), len(comment))
    if wide:
        first = struct.pack(
            "<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(directory), len(body)
        )
        end = first + struct.pack("<4sIQI", b"PK\6\7", 0, len(body) + len(directory), 1) + end
    return body + directory + end + comment


def members(body: bytes | None = None, data: bytes = bytes(16)) -> list[tuple[str, bytes]]:
    """The members of a torch file with one storage."""
    pickled = whole(mapping(("w", tensor()))) if body is None else body
    return [("w/data.pkl", pickled), ("w/byteorder", b"little"), ("w/data/0", data), ("w/version", b"3\n")]


def torch_file(body: bytes, data: bytes = bytes(16)) -> bytes:
    """A torch file around the body of a pickle."""
    return archive(members(whole(body), data))


def with_(value: bytes) -> bytes:
    """A torch file that holds weights, and a value beside them."""
    return torch_file(mapping(("w", tensor()), ("x", value)))


class Payload:
    """Runs a command when it is unpickled, in a way of one's choice."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


# Payloads that would leave a file called "ran" in the current folder.
PAYLOADS = {
    "a shell": Payload(os.system, "touch ran"),
    "code": Payload(exec, "open('ran', 'w')"),
    "an expression": Payload(eval, "open('ran', 'w')"),
    "a file": Payload(open, "ran", "w"),
}


def _file(suffix: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"w{suffix}").write_bytes(content)
        return folder / f"w{suffix}"

    return make


def _large_header(folder: Path) -> Path:
    path = _file(".safetensors", struct.pack("<Q", 100_000_001) + b"{")(folder)
    os.truncate(path, 100_000_100)  # a file with a hole, which takes no room on the disk
    return path


def _shards(
    files: dict[str, bytes], names: dict[str, str], index: str = "model.safetensors.index.json"
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inside = folder / "model"
        inside.mkdir()
        for file, content in files.items():
            (inside / file).write_bytes(content)
        (inside / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
        return inside / index

    return make


def _index(content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.safetensors.index.json").write_text(content)
        return folder

    return make


def _linked(folder: Path) -> Path:
    path = _shards({}, {"w": "a.safetensors"})(folder)
    (folder / "secret.safetensors").write_bytes(safetensors({"w": field()}, bytes(4)))
    (path.parent / "a.safetensors").symlink_to(folder / "secret.safetensors")
    return path


def _config(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(safetensors({"w": field()}, bytes(4)))
    (folder / "config.json").write_text('{"a": 1, "a": 2}')
    return folder


def _deflated(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member, data in members(data=bytes(1_000_000)):
            packed.writestr(member, data)
    return folder / "w.pt"


HERE = sum(30 + len(name) + len(data) for name, data in members())  # where a fifth member would begin
ONE = field()
SHARD = safetensors({"w": ONE}, bytes(4))
_SAFETENSORS: dict[str, tuple[str, bytes]] = {
    "nothing": ("header-length", b""),
    "a length beyond the file": ("header-length", (1 << 63).to_bytes(8, "little") + b"{}"),
    "a header that is a list": ("header-json", safetensors(b"[1]")),
    "a header that begins with space": ("header-json", safetensors(b" {}")),
    "a header cut short": ("header-json", safetensors(b'{"w": {"dtype": "F32"')),
    "a header that goes on": ("header-json", safetensors(b"{} {}")),
    "a deep header": ("header-json", safetensors(b'{"w": ' + b"[" * 100_000)),
    "a deep shape": ("header-shape", safetensors(b'{"w": {"shape": ' + b"[" * 100_000)),
    "a header that is not UTF-8": ("header-text", safetensors(b'{"\xff": 1}')),
    "half a character": ("header-text", safetensors(rb'{"\ud800": {}}')),
    "a tensor twice": (
        "header-duplicate",
        safetensors(b'{"w":%b,"w":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
    ),
    "a tensor twice, once in escapes": (
        "header-duplicate",
        safetensors(b'{"w":%b,"\\u0077":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
    ),
    "a field twice": ("header-duplicate", safetensors(b'{"w": {"dtype": "F32", "dtype": "U8"}}')),
    "metadata twice": ("header-duplicate", safetensors(b'{"__metadata__": {}, "__metadata__": {}}')),
    "a text of metadata twice": ("header-duplicate", safetensors(b'{"__metadata__": {"a": "1", "a": "2"}}')),
    "an unknown field": ("header-keys", safetensors({"w": {**ONE, "code": "import os"}}, bytes(4))),
    "a missing field": ("header-keys", safetensors({"w": {"dtype": "F32", "shape": [1]}}, bytes(4))),
    "an unknown dtype": ("header-dtype", safetensors({"w": field(dtype="F4")}, bytes(4))),
    "a tensor called __metadata__": ("header-metadata", safetensors({"__metadata__": ONE}, bytes(4))),
    "a negative size": ("header-shape", safetensors({"w": field(shape=(-1, -1))}, bytes(4))),
    "a size that is true": ("header-shape", safetensors({"w": field(shape=(True,))}, bytes(4))),
    "a size that is no integer": ("header-shape", safetensors({"w": field(shape=(1.0,))}, bytes(4))),
    "a size of twenty digits": ("header-shape", safetensors({"w": field(shape=(10**19,))}, bytes(4))),
    "too many dimensions": ("header-shape", safetensors({"w": field(shape=(1,) * 65)}, bytes(4))),
    "three offsets": ("header-shape", safetensors({"w": {**ONE, "data_offsets": [0, 4, 4]}}, bytes(4))),
    "too few bytes for the shape": ("header-size", safetensors({"w": field(shape=(2,))}, bytes(4))),
    "a product that overflows": ("header-size", safetensors({"w": field(shape=(2**32, 2**32))}, bytes(4))),
    "an end before the start": ("header-size", safetensors({"w": field(4, 0)}, bytes(4))),
    "data cut short": ("header-cover", safetensors({"w": ONE}, bytes(3))),
    "bytes after the end": ("header-cover", safetensors({"w": ONE}, bytes(5))),
    "a hole": ("header-cover", safetensors({"w": field(4, 8)}, bytes(8))),
    "an overlap": ("header-cover", safetensors({"v": ONE, "w": ONE}, bytes(4))),
    "offsets beyond the file": ("header-cover", safetensors({"w": field(2**60, 2**60 + 4)}, bytes(4))),
    "metadata that is not text": (
        "header-metadata",
        safetensors({"__metadata__": {"a": 1}, "w": ONE}, bytes(4)),
    ),
    "a name of 4097 bytes": ("tensor-name", safetensors({"ä" * 2048 + "a": ONE}, bytes(4))),
    "a name with NUL": ("tensor-name", safetensors({"a\0b": ONE}, bytes(4))),
    "an alias of nothing": (
        "aliases",
        safetensors({"__metadata__": {"mirepoix.aliases": '{"v": "u"}'}, "w": ONE}, bytes(4)),
    ),
    "an alias that hides a tensor": (
        "aliases",
        safetensors({"__metadata__": {"mirepoix.aliases": '{"w": "w"}'}, "w": ONE}, bytes(4)),
    ),
    "aliases that are no names": (
        "aliases",
        safetensors({"__metadata__": {"mirepoix.aliases": "[1]"}, "w": ONE}, bytes(4)),
    ),
    "aliases that go on": (
        "aliases",
        safetensors({"__metadata__": {"mirepoix.aliases": "{} {}"}, "w": ONE}, bytes(4)),
    ),
}

_ZIPS: dict[str, tuple[str, bytes]] = {
    "no end": ("zip-end", archive(members())[:-4]),
    "a comment at the end": ("zip-end", archive(members(), comment=b"PK\5\6")),
    "a directory elsewhere": ("zip-directory", archive(members()) + archive(members())),
    "a directory that breaks off": ("zip-directory", archive(members(), count=5)),
    "a directory with more": ("zip-directory", archive(members(), count=3)),
    "a second disk": ("zip-directory", archive(members(), disk=1)),
    "a member with NUL": ("zip-directory", archive([*members(), ("w/a\0b", b"")])),
    "sizes of 64 bits nowhere": ("zip-directory", archive(members(), listed_size=lambda size: 0xFFFFFFFF)),
    "two ends that differ": (
        "zip-headers",
        archive(members(), wide=True).replace(b"PK\5\6" + bytes(4) + b"\4", b"PK\5\6" + bytes(4) + b"\3"),
    ),
    "a compressed flag": ("zip-stored", archive(members(), method=8)),
    "an encrypted member": ("zip-stored", archive(members(), flags=1)),
    "a member twice": ("zip-duplicate", archive([*members(), ("w/data.pkl", whole(b"N"))])),
    "a member inside another": (
        "zip-overlap",
        archive([*members(), ("w/a", archive([("w/b", bytes(100))])[:133])], also=[("w/b", 100, HERE + 33)]),
    ),
    "a member listed twice": (
        "zip-duplicate",
        archive(members(), also=[("w/data.pkl", len(members()[0][1]), 0)]),
    ),
    "a member outside": ("zip-offsets", archive(members(), place=lambda place: place + 10**6)),
    "a member at the edge of 64 bits": (
        "zip-offsets",
        archive(members(), wide=True, place=lambda place: 2**64 - 1 - place),
    ),
    "a member of 64 bits": ("zip-offsets", archive(members(), wide=True, listed_size=lambda size: 2**63)),
    "two sizes": ("zip-headers", archive(members(), local_size=lambda size: size + 1)),
    "two names": ("zip-headers", archive(members(), local_name=lambda name: name.replace("pkl", "txt"))),
    "no sizes after the member": ("zip-headers", archive(members(), flags=8, local_size=lambda size: 0)),
    "other sizes after the member": (
        "zip-headers",
        archive(
            members(),
            flags=8,
            local_size=lambda size: 0,
            descriptor=lambda size: struct.pack("<4sIII", b"PK\7\x08", 0, size + 1, size + 1),
        ),
    ),
    "two folders": ("zip-layout", archive([*members(), ("v/data.pkl", whole(b"N"))])),
    "no pickle": ("zip-layout", archive(members()[1:])),
    "a storage that is not there": ("zip-storage", archive(members()[:2])),
    "a storage of another size": ("zip-storage", torch_file(mapping(("w", tensor())), bytes(15))),
    "a storage that is a path": (
        "zip-storage",
        torch_file(mapping(("w", tensor(place=storage("../../../etc/passwd"))))),
    ),
    "a program": ("torchscript", archive([*members(), ("w/constants.pkl", whole(b")"))])),
    "big endian": (
        "byte-order",
        archive([(name, data.replace(b"little", b"big")) for name, data in members()]),
    ),
    "a view beyond its storage": ("view-range", torch_file(mapping(("w", tensor((5,)))))),
    "a view from beyond its storage": ("view-range", torch_file(mapping(("w", tensor((1,), offset=2**62))))),
    "a stride beyond its storage": ("view-range", torch_file(mapping(("w", tensor((2, 2), (2**62, 1)))))),
    "a view of four gigabytes": ("view-expanded", torch_file(mapping(("w", tensor((2**30,), (0,)))))),
    "a view that overlaps itself": ("view-expanded", torch_file(mapping(("w", tensor((3, 2), (1, 1)))))),
    "a view of zeros in all directions": (
        "view-expanded",
        torch_file(mapping(("w", tensor((2**40,) * 3, (0,) * 3)))),
    ),
    "many views of one storage": (
        "view-total",
        torch_file(
            mapping(*((f"w{i}", tensor((50_000 - i,), place=storage(count=50_000))) for i in range(10))),
            bytes(200_000),
        ),
    ),
    "a conjugate view": (
        "view-odd",
        torch_file(
            mapping(
                (
                    "w",
                    tensor(
                        extra=mapping(("conj", b"\x88")),
                        place=storage(count=2, kind="ComplexFloatStorage"),
                        shape=(2,),
                    ),
                )
            )
        ),
    ),
    "a complex tensor of 128 bits": (
        "tensor-dtype",
        torch_file(mapping(("w", tensor((1,), place=storage(count=1, kind="ComplexDoubleStorage"))))),
    ),
    "a long name": ("tensor-name", torch_file(mapping(("w" * 4097, tensor())))),
    "a long name in UTF-8": ("tensor-name", torch_file(mapping(("ä" * 2049, tensor())))),
    "a torch name with NUL": ("tensor-name", torch_file(mapping(("w\0", tensor())))),
}

_PICKLES: dict[str, tuple[str, bytes]] = {
    "a pickle without end": ("pickle-cut", archive(members(whole(mapping(("w", tensor())))[:-1]))),
    "a pickle after the pickle": (
        "pickle-cut",
        archive(members(whole(mapping(("w", tensor()))) + whole(b"N"))),
    ),
    "a text longer than the file": ("pickle-cut", with_(b"X\xff\xff\xff\xff")),
    "a text of 64 bits": ("pickle-cut", with_(b"\x8d" + b"\xff" * 8)),
    "a line without end": ("pickle-cut", with_(b"c" + b"a" * 2000)),
    "an instance": ("pickle-opcode", with_(b"(" + text("touch ran") + b"ios\nsystem\n")),
    "an object": ("pickle-opcode", with_(b"(" + name("os", "system")[:0] + text("touch ran") + b"o")),
    "a registered class": ("pickle-opcode", with_(b"\x82\x01")),
    "a reference in text": ("pickle-opcode", with_(b"Pstorage\n")),
    "a buffer from outside": ("pickle-opcode", with_(b"\x97")),
    "a later protocol": ("pickle-opcode", archive(members(whole(mapping(("w", tensor())), 6)))),
    "a stack that is empty": ("pickle-stack", with_(b"0000000000")),
    "a stack below a mark": ("pickle-stack", with_(b"(\x85")),
    "a mark that is not there": ("pickle-stack", torch_file(b"t")),
    "an item of a number": ("pickle-stack", with_(b"K\1K\1K\1s")),
    "an item in a number": ("pickle-stack", with_(b"K\1K\1a")),
    "a thousand marks": ("pickle-depth", with_(b"(" * 1000)),
    "a memory of 4 billion": ("pickle-memo", with_(b"Nr\xff\xff\xff\xff")),
    "a memory that is empty": ("pickle-memo", with_(b"j\xff\xff\xff\x7f")),
    "a text that is not UTF-8": ("pickle-text", with_(b"X\1\0\0\0\xff")),
    "an import that is not UTF-8": ("pickle-text", with_(b"c\xff\n\xff\n")),
    "an integer of a megabyte": ("pickle-integer", with_(b"\x8b\0\0\x10\0" + bytes(1 << 20))),
    "an integer in no digits": ("pickle-integer", with_(b"I1e5\n")),
    "an integer in many digits": ("pickle-integer", with_(b"L" + b"9" * 500 + b"L\n")),
    "a name set twice": ("pickle-duplicate", torch_file(mapping(("w", tensor()), ("w", tensor())))),
    "a class changed": (
        "pickle-build",
        with_(name("collections", "OrderedDict") + mapping(("a", b"N")) + b"b"),
    ),
    "a shell by its name": ("pickle-global", with_(name("os", "system") + text("touch ran") + b"\x85R")),
    "a shell on the stack": (
        "pickle-global",
        with_(text("os") + text("system") + b"\x93" + text("touch ran") + b"\x85R"),
    ),
    "a shell through an attribute": (
        "pickle-global",
        with_(text("torch") + text("serialization.os.system") + b"\x93" + text("touch ran") + b"\x85R"),
    ),
    "an attribute of torch": ("pickle-global", with_(name("builtins", "getattr"))),
    "torch.load within": ("pickle-global", with_(name("torch", "load") + text("w.pt") + b"\x85R")),
    "an import that is no text": ("pickle-global", with_(b"K\1K\1\x93")),
    "a new shell": ("pickle-global", with_(name("os", "system") + text("touch ran") + b"\x85\x81")),
    "a text called": ("pickle-reduce", with_(text("os.system") + text("touch ran") + b"\x85R")),
    "a dtype called": ("pickle-reduce", with_(name("torch", "float32") + b")R")),
    "a new dtype": ("pickle-reduce", with_(name("torch", "float32") + b")\x81")),
    "an ordered dict of pairs": ("pickle-reduce", with_(name("collections", "OrderedDict") + b"]\x85R")),
    "a tensor of nothing": ("pickle-reduce", with_(name("torch._utils", "_rebuild_tensor_v2") + b")R")),
    "a parameter of nothing": (
        "pickle-reduce",
        with_(name("torch._utils", "_rebuild_parameter") + b"NNN\x87R"),
    ),
    "a type rebuilt by a shell": (
        "pickle-reduce",
        with_(name("torch._tensor", "_rebuild_from_type_v2") + b"(" + text("os.system") + b"NNNtR"),
    ),
    "a dtype that is a size": (
        "pickle-reduce",
        with_(
            name("torch._utils", "_rebuild_tensor_v3")
            + b"("
            + storage()
            + integer(0)
            + sizes((4,)) * 2
            + b"\x89N"
            + name("torch", "Size")
            + b"tR"
        ),
    ),
    "a negative stride": ("pickle-reduce", torch_file(mapping(("w", tensor(strides=(-1,)))))),
    "a negative shape": ("pickle-reduce", torch_file(mapping(("w", tensor((-4,)))))),
    "a negative offset": ("pickle-reduce", torch_file(mapping(("w", tensor(offset=-1))))),
    "a shape without strides": ("pickle-reduce", torch_file(mapping(("w", tensor(strides=()))))),
    "too many strides": ("pickle-reduce", torch_file(mapping(("w", tensor((1,) * 65, (1,) * 65))))),
    "a storage that is a path name": ("pickle-storage", with_(text("/etc/passwd") + b"Q")),
    "a storage of objects": (
        "pickle-storage",
        with_(
            b"("
            + text("storage")
            + name("collections", "OrderedDict")
            + text("0")
            + text("cpu")
            + integer(4)
            + b"tQ"
        ),
    ),
    "a storage of minus one": ("pickle-storage", with_(storage(count=-1))),
    "lists without end": ("pickle-memory", with_(b"]" * 2_000_000)),
}

CASES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{name: (rule, _file(".safetensors", content)) for name, (rule, content) in _SAFETENSORS.items()},
    **{name: (rule, _file(".pt", content)) for name, (rule, content) in (_ZIPS | _PICKLES).items()},
    **{
        f"{name}, protocol {protocol}": (
            "pickle-global",
            _file(".pt", archive(members(pickle.dumps({"x": payload}, protocol)))),
        )
        for name, payload in PAYLOADS.items()
        for protocol in (2, 4)
    },
    **{
        f"{name}, bare": ("legacy-torch", _file(".pt", pickle.dumps({"x": payload}, 2)))
        for name, payload in PAYLOADS.items()
    },
    "a header of 100 megabytes": ("header-length", _large_header),
    "a bomb": ("zip-stored", _deflated),
    "a tar archive": ("legacy-torch", _file(".pth", bytes(257) + b"ustar" + bytes(300))),
    "other bytes": ("torch-magic", _file(".bin", b"#!/bin/sh\ntouch ran\n")),
    "a shard above": ("index-path", _shards({}, {"w": "../secret.safetensors"})),
    "a shard below": ("index-path", _shards({}, {"w": "deep/a.safetensors"})),
    "a shard at the root": ("index-path", _shards({}, {"w": "/etc/a.safetensors"})),
    "a shard on another system": ("index-path", _shards({}, {"w": "..\\a.safetensors"})),
    "a shard that is the folder": ("index-path", _shards({}, {"w": ".."})),
    "a shard of another kind": ("index-path", _shards({"a.pt": b""}, {"w": "a.pt"})),
    "a shard with NUL": ("index-path", _shards({}, {"w": "a\0.safetensors"})),
    "a shard that is a link": ("index-link", _linked),
    "a tensor that is listed only": (
        "index-tensors",
        _shards({"a.safetensors": SHARD}, {"w": "a.safetensors", "v": "a.safetensors"}),
    ),
    "a tensor that is not listed": (
        "index-tensors",
        _shards(
            {"a.safetensors": SHARD, "b.safetensors": SHARD}, {"w": "a.safetensors", "v": "b.safetensors"}
        ),
    ),
    "an index of nothing": ("index", _index("{}")),
    "an index of lists": ("index", _index('{"weight_map": {"w": ["a"]}}')),
    "an index that is a list": ("json", _index("[]")),
    "an index that is no JSON": ("json", _index("{'w': 1}")),
    "a deep index": ("json", _index("[" * 100_000)),
    "a config that says two things": ("json", _config),
}
