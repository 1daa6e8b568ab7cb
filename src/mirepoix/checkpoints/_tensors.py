"""Tensors as bytes: one table of dtypes, and the way there and back for NumPy and torch alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from mirepoix.types import InputError

__all__ = ["CODES", "DTYPES", "Framework", "RawTensor", "build", "raw"]

Framework: TypeAlias = Literal["torch", "numpy"]

DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""From the code of a dtype in a safetensors file to its name (NumPy's and torch's) and bytes per element."""

CODES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """The bytes of a tensor in C order, little endian, with what is needed to read them."""

    code: str
    shape: tuple[int, ...]
    data: memoryview


def raw(name: str, value: Any) -> RawTensor:
    """The content of a torch tensor or NumPy array, from any device; a view where possible."""
    torch = sys.modules.get("torch")  # who has not imported torch has no torch tensor
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise InputError(
                f"{name}: expected a dense tensor with data, got layout {value.layout}, dtype {value.dtype}, "
                f"device {value.device}. Make it dense (and load its data) first."
            )
        code = _code(name, str(value.dtype).removeprefix("torch."))
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        flat = flat.as_strided(flat.shape, (1,))  # a single element is contiguous whatever its stride says
        return RawTensor(code, tuple(value.shape), flat.view(torch.uint8).numpy().data)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        code = _code(name, array.dtype.name)
        if array.dtype.byteorder != "|" and array.dtype.itemsize > 1:
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return RawTensor(code, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    raise InputError(
        f"{name}: expected a torch tensor or a NumPy array, got {type(value).__name__}. "
        "Leave it out, or convert it."
    )


def build(
    name: str, code: str, shape: tuple[int, ...], fill: Callable[[memoryview], None], framework: Framework
) -> Any:
    """A new tensor whose bytes are written by ``fill``."""
    dtype, size = DTYPES[code]
    count = math.prod(shape) * size
    if framework == "torch":
        import torch

        data = torch.empty(count, dtype=torch.uint8)
        fill(data.numpy().data)
        return data.view(getattr(torch, dtype)).reshape(shape)
    try:
        numpy_dtype = np.dtype(dtype)
    except TypeError as error:
        raise InputError(
            f"{name}: has dtype {dtype}, which NumPy does not know. Open the file with framework='torch'."
        ) from error
    array = np.empty(count, dtype=np.uint8)
    fill(array.data)
    return array.view(numpy_dtype).reshape(shape)


def _code(name: str, dtype: str) -> str:
    if dtype not in CODES:
        raise InputError(
            f"{name}: expected one of the dtypes {', '.join(CODES)}, got {dtype}. Convert it to one of them."
        )
    return CODES[dtype]
