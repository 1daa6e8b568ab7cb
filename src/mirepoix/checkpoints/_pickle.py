"""Pickles read as data: a stack machine that knows tensors and containers, and calls nothing.

A pickle is a program; Python's own machine imports what the program names and calls it. This one has no way
to do either: a name is looked up in a fixed table of inert entries, "calling" an entry of the table makes a
record of what torch would have made, and any other name is refused.

Only what leads from the top to a tensor is kept: mappings with text as keys, tuples, numbers and short
texts. Lists and sets stay empty and objects have no content, since no weights lie in them; so a hostile
pickle cannot grow to a multiple of its size, and every object that is kept is charged to a budget.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from mirepoix.checkpoints._entry import LARGEST_NAME, Refused
from mirepoix.checkpoints._tensors import CODES

__all__ = ["Storage", "TensorRecord", "read_pickle"]

MOST_OPCODES = 20_000_000  # about ten seconds
DEEPEST_MARK = 256
LARGEST_RANK = 64
LONGEST_INTEGER = 64  # bytes


class Storage(NamedTuple):
    """Bytes beside the pickle: dtype code (None for bare bytes), key, number of elements."""

    code: str | None
    key: str
    length: int


class TensorRecord(NamedTuple):
    """What makes a tensor: a storage and a view of it, in elements of dtype ``code`` (None: another dtype)."""

    code: str | None
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    odd: bool  # conjugated or negated when it is read


class Global(NamedTuple):
    """An entry of the table: a name of a Python object, and what calling that would make."""

    name: str
    makes: str
    code: str | None = None


class _Object:
    """Something that is no weight; one for all."""

    __slots__ = ()


class _LongText:
    """A text too long to be the name of a tensor; one for all."""

    __slots__ = ()


OBJECT, LONG_TEXT = _Object(), _LongText()

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": None,
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_REBUILDS = {
    "_rebuild_tensor": "tensor",
    "_rebuild_tensor_v2": "tensor",
    "_rebuild_tensor_v3": "tensor",
    "_rebuild_parameter": "parameter",
    "_rebuild_parameter_with_state": "parameter",
}
_MAPPINGS = (
    "builtins.dict",
    "__builtin__.dict",
    "collections.OrderedDict",
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)
# What training leaves beside the weights: settings, paths, times, numbers of NumPy.
_OBJECTS = (
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("object", "list", "tuple", "set", "frozenset", "int", "float", "str", "bool", "bytes",
                   "bytearray", "complex", "slice", "range")),
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "types.SimpleNamespace",
    "torch.Generator",
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.nn.Parameter",
    "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local")
      for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in (
        "dtype", "ndarray", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64")),
    *(f"numpy.dtypes.{name}DType" for name in (
        "Bool", "Float16", "Float32", "Float64", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16",
        "UInt32", "UInt64")),
    *(f"numpy.random.{name}" for name in (
        "_pickle.__bit_generator_ctor", "_pickle.__generator_ctor", "_pickle.__randomstate_ctor")),
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
)  # fmt: skip

_ENTRIES = [
    *(Global(f"torch.{name}", "storage", code) for name, code in _STORAGES.items()),
    Global("torch.storage.UntypedStorage", "storage"),
    Global("torch.UntypedStorage", "storage"),
    Global("torch.storage.TypedStorage", "object"),
    Global("torch.storage._LegacyStorage", "object"),
    *(Global(f"torch.{name}", "dtype", code) for name, code in CODES.items()),
    *(Global(f"torch.{name}", "dtype") for name in ("complex32", "complex128", "qint8", "quint8", "qint32")),
    *(Global(f"torch._utils.{name}", makes) for name, makes in _REBUILDS.items()),
    Global("torch._tensor._rebuild_from_type_v2", "typed"),
    Global("torch.Size", "size"),
    *(Global(name, "mapping") for name in _MAPPINGS),
    *(Global(name, "object") for name in _OBJECTS),
    Global("copyreg._reconstructor", "reconstruct"),
    Global("copy_reg._reconstructor", "reconstruct"),
]
GLOBALS = {entry.name: entry for entry in _ENTRIES}


def read_pickle(data: bytes, budget: int) -> Any:
    """What a pickle describes, as mappings, tuples, numbers, texts and records.

    Args:
        data: The pickle, of protocol 1 to 5.
        budget: About how many bytes the objects may take together.

    Raises:
        Refused: If it is cut short or asks for anything else; nothing was run.
    """
    return _Machine(data, budget).run()


class _Machine:
    def __init__(self, data: bytes, budget: int) -> None:
        self.data, self.place, self.budget = data, 0, budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.fence = 0  # no opcode may take what lies below the last mark
        self.highest = 1024

    def run(self) -> Any:
        data, length = self.data, len(self.data)
        for _ in range(MOST_OPCODES):
            if self.place >= length:
                raise Refused("pickle-cut", "its pickle has no end")
            code = data[self.place]
            self.place += 1
            if code == STOP:
                value = self.pop()
                if self.stack or self.marks or self.place != length:
                    raise Refused("pickle-cut", "its pickle goes on after its end")
                return value
            step = STEPS.get(code)
            if step is None:
                raise Refused("pickle-opcode", f"its pickle has an opcode {code:#04x} that no weights need")
            step(self)
        raise Refused("pickle-opcodes", f"its pickle has more than {MOST_OPCODES} opcodes")

    # Reading what follows an opcode

    def skip(self, count: int) -> int:
        start = self.place
        if count > len(self.data) - start:
            raise Refused("pickle-cut", "its pickle is cut short")
        self.place = start + count
        return start

    def byte(self) -> int:
        place = self.place
        if place >= len(self.data):
            raise Refused("pickle-cut", "its pickle is cut short")
        self.place = place + 1
        return self.data[place]

    def number(self, size: int) -> int:
        start = self.skip(size)
        return int.from_bytes(self.data[start : start + size], "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.place, self.place + 512)
        if end < 0:
            raise Refused("pickle-cut", "its pickle has a line without end")
        text, self.place = self.data[self.place : end], end + 1
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise Refused("pickle-text", "its pickle has a text that is not UTF-8") from error

    # The stack, the marks, the memo and the budget

    def charge(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise Refused("pickle-memory", "its pickle would take far more memory than the file has bytes")

    def push(self, value: Any, cost: int = 0) -> None:
        self.stack.append(value)
        if len(self.stack) > self.highest:
            self.highest += 1024
            cost += 18 * 1024  # a list that grows is there twice for a moment
        if cost:
            self.charge(cost)

    def pop(self) -> Any:
        if len(self.stack) <= self.fence:
            raise Refused("pickle-stack", "its pickle takes more than it has put down")
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= self.fence:
            raise Refused("pickle-stack", "its pickle takes more than it has put down")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.marks) >= DEEPEST_MARK:
            raise Refused("pickle-depth", f"its pickle is nested more than {DEEPEST_MARK} deep")
        self.marks.append(self.fence)
        self.fence = len(self.stack)

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("pickle-stack", "its pickle closes what it has not opened")
        values = self.stack[self.fence :]
        del self.stack[self.fence :]
        self.fence = self.marks.pop()
        return values

    def put(self, index: int) -> None:
        value = self.top()
        if index == len(self.memo):
            self.memo.append(value)
            self.charge(9)
        elif index < len(self.memo):
            self.memo[index] = value
        else:  # every pickler counts up
            raise Refused("pickle-memo", f"its pickle remembers {index} after {len(self.memo)}")

    def get(self, index: int) -> None:
        if index >= len(self.memo):
            raise Refused("pickle-memo", f"its pickle recalls {index}, which it has not remembered")
        self.push(self.memo[index])

    # Values

    def text(self, size: int) -> None:
        start = self.skip(size)
        if size > LARGEST_NAME:
            return self.push(LONG_TEXT)
        try:
            text = self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise Refused("pickle-text", "its pickle has a text that is not UTF-8") from error
        self.push(text, sys.getsizeof(text))

    def opaque(self, size: int) -> None:
        self.skip(size)
        self.push(OBJECT)

    def long(self, size: int) -> None:
        if size > LONGEST_INTEGER:
            raise Refused("pickle-integer", f"its pickle has an integer of {size} bytes")
        start = self.skip(size)
        self.push(int.from_bytes(self.data[start : start + size], "little", signed=True), 32 + size)

    def decimal(self) -> None:
        line = self.line()
        if line in ("00", "01"):  # how old protocols write booleans
            return self.push(line == "01")
        digits = line.removesuffix("L").removeprefix("-")
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 2 * LONGEST_INTEGER:
            raise Refused("pickle-integer", f"its pickle has an integer {line[:40]!r}")
        self.push(int(line.removesuffix("L")), 32 + len(digits))

    def binary_float(self) -> None:
        start = self.skip(8)
        self.push(struct.unpack_from(">d", self.data, start)[0], 24)

    def proto(self) -> None:
        version = self.byte()
        if version > 5:
            raise Refused("pickle-opcode", f"its pickle has protocol {version}, expected at most 5")

    def tuple_of(self, count: int) -> None:
        if len(self.stack) - self.fence < count:
            raise Refused("pickle-stack", "its pickle takes more than it has put down")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values, 56 + 8 * count)

    def tuple_since_mark(self) -> None:
        values = self.since_mark()
        self.push(tuple(values), 56 + 8 * len(values))

    def list_since_mark(self) -> None:
        self.since_mark()
        self.push([], 56)

    def object_since_mark(self) -> None:
        self.since_mark()
        self.push(OBJECT)

    def dict_since_mark(self) -> None:
        values = self.since_mark()
        self.push({}, 64)
        self.set_items(values)

    def append(self) -> None:
        self.pop()
        self.appends([])

    def appends(self, values: list[Any]) -> None:
        if not isinstance(self.top(), list | _Object):
            raise Refused("pickle-stack", "its pickle appends to what is no list")

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if target is OBJECT:
            return
        if type(target) is not dict or len(values) % 2:
            raise Refused("pickle-stack", "its pickle sets items of what is no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is str:
                if key in target:
                    raise Refused("pickle-duplicate", f"its pickle sets {key[:60]!r} twice")
                self.charge(160 if not target else 90)
                target[key] = value
            elif key is LONG_TEXT and isinstance(value, TensorRecord):
                raise Refused("tensor-name", f"a name is longer than {LARGEST_NAME} bytes")

    def build(self) -> None:
        self.pop()
        if isinstance(self.top(), Global):
            raise Refused("pickle-build", f"its pickle changes {self.top().name}")

    def duplicate(self) -> None:
        self.push(self.top())

    # Names and calls

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("pickle-global", "pickled names that are no text")
        found = GLOBALS.get(f"{module}.{name}")
        if found is None:
            raise Refused("pickle-global", f"pickled objects beyond tensors ({module}.{name})"[:300])
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.named(module, name)

    def new_object(self, extra: int) -> None:
        for _ in range(extra):
            self.pop()
        called = self.pop()
        if not isinstance(called, Global) or called.makes not in ("mapping", "object"):
            raise Refused("pickle-reduce", f"its pickle makes a new {_name(called)}")
        self.push(*({}, 64) if called.makes == "mapping" else (OBJECT, 0))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        self.push(*self.call(called, arguments))

    def call(self, called: Any, arguments: Any) -> tuple[Any, int]:
        """What a call would make, and its cost."""
        if not isinstance(called, Global) or type(arguments) is not tuple:
            raise Refused("pickle-reduce", f"its pickle calls {_name(called)}")
        makes, count = called.makes, len(arguments)
        first = arguments[0] if arguments else None
        inner = first.makes if isinstance(first, Global) else ""
        if makes == "tensor":
            return _tensor(called, arguments), 112
        if makes == "parameter" and count in (3, 4) and isinstance(first, TensorRecord):
            return first, 0
        if makes == "typed" and count == 4 and inner in ("tensor", "parameter"):
            return self.call(first, arguments[2])
        if makes == "size" and count == 1 and type(first) is tuple:
            return first, 0
        if makes == "mapping" and (not arguments or called.name == "collections.defaultdict"):
            return {}, 64
        if makes == "reconstruct" and count == 3 and inner in ("mapping", "object"):
            return ({}, 64) if inner == "mapping" else (OBJECT, 0)
        if makes == "object":
            return OBJECT, 0
        raise Refused("pickle-reduce", f"its pickle calls {called.name} with other arguments than torch does")

    def persistent(self) -> None:
        match self.pop():
            case ("storage", Global(makes="storage", code=code), str(key), str(), int(count)) if (
                type(count) is int and count >= 0
            ):
                self.push(Storage(code, key, count), 80)
            case _:
                raise Refused("pickle-storage", "its pickle names a storage in another way than torch does")


def _tensor(called: Global, arguments: tuple[Any, ...]) -> TensorRecord:
    """What ``torch._utils._rebuild_tensor*`` would make."""
    version, count = called.name[-3:], len(arguments)
    match arguments[:4]:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides)) if (
            count in {"_v2": (6, 7), "_v3": (7, 8)}.get(version, (4,))
            and len(shape) == len(strides) <= LARGEST_RANK
            and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
        ):
            pass
        case _:
            raise Refused(
                "pickle-reduce", f"its pickle calls {called.name} with other arguments than torch does"
            )
    if version == "_v3":
        dtype = arguments[6]
        if not isinstance(dtype, Global) or dtype.makes != "dtype":
            raise Refused("pickle-reduce", f"its pickle calls {called.name} with {_name(dtype)} as dtype")
        code, extra = dtype.code, arguments[7:]
    else:
        code, extra = storage.code, arguments[6:]
    return TensorRecord(code, storage, offset, shape, strides, any(extra))


def _name(value: Any) -> str:
    return value.name if isinstance(value, Global) else f"a {type(value).__name__.strip('_').lower()}"


STOP = ord(".")
STEPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _Machine.proto,
    0x95: lambda machine: machine.skip(8),  # a frame; its length only helps to read ahead
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.since_mark,
    ord("2"): _Machine.duplicate,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("I"): _Machine.decimal,
    ord("L"): _Machine.decimal,
    ord("K"): lambda machine: machine.push(machine.byte()),
    ord("M"): lambda machine: machine.push(machine.number(2), 32),
    ord("J"): lambda machine: machine.long(4),
    0x8A: lambda machine: machine.long(machine.byte()),
    0x8B: lambda machine: machine.long(machine.number(4)),
    ord("G"): _Machine.binary_float,
    0x8C: lambda machine: machine.text(machine.byte()),
    ord("X"): lambda machine: machine.text(machine.number(4)),
    0x8D: lambda machine: machine.text(machine.number(8)),
    ord("U"): lambda machine: machine.text(machine.byte()),
    ord("T"): lambda machine: machine.text(machine.number(4)),
    ord("C"): lambda machine: machine.opaque(machine.byte()),
    ord("B"): lambda machine: machine.opaque(machine.number(4)),
    0x8E: lambda machine: machine.opaque(machine.number(8)),
    0x96: lambda machine: machine.opaque(machine.number(8)),
    ord(")"): lambda machine: machine.push(()),
    0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2),
    0x87: lambda machine: machine.tuple_of(3),
    ord("t"): _Machine.tuple_since_mark,
    ord("]"): lambda machine: machine.push([], 56),
    ord("l"): _Machine.list_since_mark,
    ord("a"): _Machine.append,
    ord("e"): lambda machine: machine.appends(machine.since_mark()),
    ord("}"): lambda machine: machine.push({}, 64),
    ord("d"): _Machine.dict_since_mark,
    ord("s"): _Machine.set_item,
    ord("u"): lambda machine: machine.set_items(machine.since_mark()),
    0x8F: lambda machine: machine.push(OBJECT),
    0x90: lambda machine: machine.appends(machine.since_mark()),
    0x91: _Machine.object_since_mark,
    ord("q"): lambda machine: machine.put(machine.byte()),
    ord("r"): lambda machine: machine.put(machine.number(4)),
    0x94: lambda machine: machine.put(len(machine.memo)),
    ord("h"): lambda machine: machine.get(machine.byte()),
    ord("j"): lambda machine: machine.get(machine.number(4)),
    ord("c"): lambda machine: machine.named(machine.line(), machine.line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: lambda machine: machine.new_object(1),
    0x92: lambda machine: machine.new_object(2),
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
"""What each opcode does; text opcodes of protocol 0, extension codes and class instances are not here."""
