"""Any bytes at all: a file opens or is refused by InputError, at once and within a few times its own size.

Valid files are changed in the ways that matter to a parser: bytes, numbers, lengths, pieces of other files, tokens
of JSON, opcodes of pickles. ``MIREPOIX_FUZZ`` sets how many files (a million take an hour).
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import random
import signal
import struct
import tempfile
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.checkpoints import hostile

from mirepoix.checkpoints import fingerprint, open_weights
from mirepoix.types import InputError, UnsafeCheckpoint

INPUTS = int(os.environ.get("MIREPOIX_FUZZ", "20000"))
# To take the memory is slow: in short runs of 200 files in every 1000 only. (Starting and stopping leaks, so rarely.)
MEASURED = 1000 if "MIREPOIX_FUZZ" in os.environ else 200
SLACK = 256 * 1024  # bytes, for what does not grow with the file
CPU_SECONDS = 5.0  # far above what any of these files needs

NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
]
NUMBERS += [2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1]
TOKENS = [
    *map(str, NUMBERS),
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    '""',
    "null",
    "true",
    "1e9",
    "-1",
    "1.5",
    "\\u0000",
]
TOKENS += [
    '"dtype"',
    '"shape"',
    '"data_offsets"',
    '"__metadata__"',
    '"F32"',
    '"F64"',
    '"BOOL"',
    '"F4"',
    "[]",
    "{}",
]
TOKENS += ["[" * 50, '{"a":' * 50, "\ud7ff", " " * 9, "\\ud800", "9" * 30, "1," * 70]


def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    theta: dict[str, torch.Tensor] = {"embed.weight": torch.randn(64, 32, generator=draw)}
    for i in range(2):
        theta[f"blocks.{i}.conv.weight"] = torch.randn(8, 8, 3, 3, generator=draw)
        theta[f"blocks.{i}.norm.weight"] = torch.ones(16).to(torch.bfloat16)
        theta[f"blocks.{i}.norm.num_batches_tracked"] = torch.tensor(i)
    return theta | {
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(3).half(),
    }


def saved(value: object, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    return file.getvalue()


def safetensors_seeds() -> list[bytes]:
    plain = safetensors.torch.save(
        weights(), {"format": "pt", "mirepoix.aliases": json.dumps({"head.weight": "embed.weight"})}
    )
    (length,) = struct.unpack("<Q", plain[:8])
    header = json.loads(plain[8 : 8 + length])
    indented = json.dumps(header, indent=2, ensure_ascii=True).replace("blocks", "bl\\u00f6cke").encode()
    return [plain, hostile.safetensors(indented, plain[8 + length :])]


def torch_seeds() -> list[bytes]:
    theta: dict[str, object] = dict(weights())
    theta |= {
        "head.weight": theta["embed.weight"],
        "turned": torch.randn(16, 32).T,
        "every": torch.ones(30)[::3],
    }
    theta |= {"parameter": torch.nn.Parameter(torch.ones(4)), "small": torch.ones(4).to(torch.float8_e4m3fn)}
    lightning = {
        "epoch": 3,
        "state_dict": OrderedDict(theta),
        "hyper_parameters": {"lr": 1e-3, "layers": [1, 2, 3], "size": 10**12, "name": "ä"},
        "args": Namespace(x=(1, None, 2.5)),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        "tags": {"a", "b"},
    }
    return [saved(OrderedDict(theta)), saved(lightning), saved(lightning, 4), saved(lightning, 5)]


def changed_bytes(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Bytes changed where it matters more often: at both ends, where the headers are."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not content:
            break
        near = draw.choice((64, 1024, len(content)))
        place = draw.randrange(min(near, len(content)))
        if draw.random() < 0.5:
            place = len(content) - 1 - place
        kind = draw.randrange(8)
        if kind == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[place] = draw.randrange(256)
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[place : place + draw.randrange(1, 64)]
        elif kind == 4:
            content[place:place] = draw.randbytes(draw.randrange(1, 64))
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            content[place:place] = other[start : start + draw.randrange(1, 4096)]
        else:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(NUMBERS) + draw.choice((0, 0, 1, -1))
            content[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(content)


def changed_header(data: bytes, draw: random.Random) -> bytes:
    """The JSON header changed by tokens, and sometimes its length with it."""
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length].decode()
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(text))
        span = draw.choice((0, 1, 1, 2, 8, 40))
        if draw.random() < 0.3:
            start = draw.randrange(len(text))
            token = text[start : start + draw.choice((1, 8, 40, 90))]
        else:
            token = draw.choice(TOKENS)
        text = text[:place] + token + text[place + span :]
    header = text.encode("utf-8", "surrogatepass")
    return (struct.pack("<Q", len(header)) if draw.random() < 0.9 else data[:8]) + header + data[8 + length :]


OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]
OPERANDS = [
    b"",
    b"\0",
    b"\1",
    b"\xff",
    b"\4\0\0\0",
    b"\xff" * 4,
    b"\2\0\0\0ab",
    b"\x08" * 9,
    b"1\n",
    b"-5L\n",
    b"w\n",
]
OPERANDS += [b"os\nsystem\n", b"torch\nFloatStorage\n", b"collections\nOrderedDict\n"]
OPERANDS += [b"torch._utils\n_rebuild_tensor_v2\n"]


class Archive:
    """A torch file taken apart, so that its pickle can be changed and the archive stay whole."""

    def __init__(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.members = [(name, archive.read(name)) for name in archive.namelist()]
        self.name, self.pickle = next(item for item in self.members if item[0].endswith("/data.pkl"))
        places = [place for _, _, place in pickletools.genops(self.pickle) if place is not None]
        self.opcodes = list(zip(places, [*places[1:], len(self.pickle)], strict=True))
        self.numbers = [place + 1 for place in places if self.pickle[place : place + 1] == b"K"]

    def changed(self, draw: random.Random) -> bytes:
        content = self.pickle
        if draw.random() < 0.4:  # only numbers: nearly right shapes, strides, offsets and counts
            changed = bytearray(content)
            for place in draw.sample(self.numbers, draw.choice((1, 1, 2, 3))):
                changed[place] = draw.choice((0, 1, 2, 3, 4, 8, 16, 32, 64, 255, max(0, changed[place] - 1)))
            return self.around(bytes(changed))
        for start, stop in sorted(draw.sample(self.opcodes, draw.choice((1, 1, 2, 3))), reverse=True):
            kind = draw.randrange(6)
            if kind == 0:
                piece = b""
            elif kind == 1:
                piece = content[start:stop] * draw.choice((2, 3, 50))
            elif kind == 2:
                piece = b"".join(
                    self.pickle[a:b] for a, b in draw.choices(self.opcodes, k=draw.choice((1, 2, 5)))
                )
            elif kind == 3:
                piece = content[start:stop] + draw.choice(OPCODES) + draw.choice(OPERANDS)
            elif kind == 4:
                piece = content[start : start + 1] + draw.choice(OPERANDS)
            else:
                piece = hostile.integer(draw.choice(NUMBERS))
            content = content[:start] + piece + content[stop:]
        return self.around(content, draw)

    def around(self, content: bytes, draw: random.Random | None = None) -> bytes:
        members = [(name, content if name == self.name else data) for name, data in self.members]
        if draw is None:
            return hostile.archive(members)
        if draw.random() < 0.1:
            members = draw.sample(members, draw.randrange(1, len(members) + 1))
        return hostile.archive(members, wide=draw.random() < 0.1, disk=draw.random() < 0.02)


def fuzz(suffix: str, changes: list[Callable[[random.Random], bytes]], inputs: int) -> tuple[int, int]:
    """How many files opened and how many were refused."""

    def hang(*_: object) -> None:
        raise AssertionError("a file takes for ever")

    memory = Path("/dev/shm")
    opened = refused = 0
    previous = signal.signal(signal.SIGPROF, hang)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / f"w{suffix}"
        try:
            for number in range(inputs):
                draw = random.Random(f"{suffix} {number}")
                data = draw.choice(changes)(draw)
                path.write_bytes(data)
                if number % 1000 == 0:
                    tracemalloc.start()
                elif number % 1000 == MEASURED:
                    tracemalloc.stop()
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                try:
                    checkpoint = open_weights(path, framework="numpy")
                    for name in checkpoint:
                        assert checkpoint.raw(name).data.nbytes <= checkpoint.nbytes
                    assert checkpoint.nbytes <= 4 * len(data)
                    opened += 1
                except InputError:
                    refused += 1
                except BaseException as error:
                    error.add_note(f"{suffix} file number {number}")
                    raise
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                peak = tracemalloc.get_traced_memory()[1] - before
                checkpoint = None
                assert peak <= 4 * len(data) + SLACK, f"number {number} of {len(data)} bytes took {peak}"
        finally:
            tracemalloc.stop()
            signal.signal(signal.SIGPROF, previous)
    return opened, refused


def test_safetensors_files_open_or_are_refused():
    seeds = safetensors_seeds()
    everything = seeds + torch_seeds()
    opened, refused = fuzz(
        ".safetensors",
        [
            lambda draw: changed_bytes(draw.choice(seeds), draw, everything),
            lambda draw: changed_header(draw.choice(seeds), draw),
            lambda draw: changed_header(draw.choice(seeds), draw),
        ],
        INPUTS // 2,
    )
    assert min(opened, refused) > INPUTS // 2 // 100  # both ways are tried


def test_torch_files_open_or_are_refused():
    seeds = torch_seeds()
    everything = seeds + safetensors_seeds()
    archives = [Archive(seed) for seed in seeds]
    opened, refused = fuzz(
        ".pt",
        [
            lambda draw: changed_bytes(draw.choice(seeds), draw, everything),
            lambda draw: draw.choice(archives).changed(draw),
            lambda draw: draw.choice(archives).changed(draw),
        ],
        INPUTS // 2,
    )
    assert min(opened, refused) > INPUTS // 2 // 100


STRICTER = {
    "header-duplicate",
    "header-keys",
    "header-json",
    "header-shape",
    "header-text",
    "tensor-name",
    "aliases",
}


def test_what_opens_is_what_the_reference_opens(tmp_path):
    seeds, path = safetensors_seeds(), tmp_path / "w.safetensors"
    both = 0
    for number in range(2000):
        draw = random.Random(f"reference {number}")
        path.write_bytes(changed_header(draw.choice(seeds), draw))
        try:
            with safetensors.safe_open(path, "np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                expected = {
                    name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
                }
        except safetensors.SafetensorError:
            expected = None
        try:
            with open_weights(path, framework="numpy") as opened:
                found = {name: (opened.shapes[name], code) for name, code in opened.codes.items()}
        except UnsafeCheckpoint as refused:
            found, rule = None, refused.rule
        if found is None:
            assert expected is None or rule in STRICTER
        else:
            both += 1
            assert {name: entry for name, entry in found.items() if name not in opened.aliases} == expected
    assert both > 100


def test_what_opens_is_what_torch_opens(tmp_path):
    archives, path = [Archive(seed) for seed in torch_seeds()[:1]], tmp_path / "w.pt"
    both = 0
    for number in range(1000):
        draw = random.Random(f"torch {number}")
        path.write_bytes(draw.choice(archives).changed(draw))
        try:
            opened = open_weights(path)
        except InputError:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                loaded = torch.load(path, weights_only=True)
        except Exception:  # of many kinds
            continue
        both += 1
        loaded = loaded.get("state_dict", loaded)
        tensors = {
            name: value
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        assert fingerprint(opened) == fingerprint(tensors)
    assert both > 50


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_seeds_themselves_open(tmp_path, suffix):
    for data in safetensors_seeds() if suffix == ".safetensors" else torch_seeds():
        (tmp_path / f"w{suffix}").write_bytes(data)
        checkpoint = open_weights(tmp_path / f"w{suffix}")
        assert checkpoint.aliases == {"head.weight": "embed.weight"}
        assert torch.equal(checkpoint["head.weight"], weights()["embed.weight"])
