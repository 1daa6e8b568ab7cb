"""Odd torch files, read by torch itself where that was asked for: never anything but ``weights_only=True``."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._containers import RESAVE, strip_wrappers, unwrap
from mirepoix.checkpoints._entry import Entry, Layout
from mirepoix.checkpoints._reader import opened
from mirepoix.checkpoints._tensors import CODES
from mirepoix.types import InputError, UnsafeCheckpoint

__all__ = ["read_by_torch"]

OLDEST_TORCH = (2, 10)
"""Before it, files ran code (CVE-2025-32434, up to 2.5) or spoiled memory (CVE-2026-24747), weights only or not."""


def read_by_torch(path: Path, *, container: str | None) -> Layout:
    """The tensors in a torch file of any kind, all of them read at once."""
    import torch

    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise InputError(
            f"{path}: cannot be opened safely, torch {torch.__version__} is older than "
            f"{'.'.join(map(str, OLDEST_TORCH))} and its weights_only=True is not safe. Install a newer torch."
        )
    with opened(path, "a torch file") as (_, state):
        loaded = _load(path)
    theta = unwrap(loaded, str(path), container, lambda value: isinstance(value, torch.Tensor))
    theta = {name: tensor.detach() for name, tensor in strip_wrappers(theta).items()}
    entries: dict[str, Entry] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in theta.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in CODES or tensor.layout is not torch.strided or tensor.device.type == "meta":
            raise InputError(
                f"{path}: {name}: expected a dense tensor of one of the dtypes {', '.join(CODES)}, got {dtype}, "
                f"{tensor.layout}, on {tensor.device}. Convert it and save the file again."
            )
        entries[name] = Entry(CODES[dtype], tuple(tensor.shape), 0, 0)
        place = tensor.data_ptr(), dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()
        if tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
    return Layout((path,), (state,), entries, aliases=aliases, loaded=theta)


def _load(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            # Torch asks for a report about pickles it did not write; that it reads or refuses them is enough.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"pickled objects beyond tensors ({name[1]})" if name else "something else than tensors"
        raise UnsafeCheckpoint(
            "pickle-global", f"{path}: cannot be opened safely, it holds {what}. It was not run. {RESAVE}"
        ) from error
    except Exception as error:  # torch raises many kinds for bytes it cannot read
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsafeCheckpoint(
            "torch-load",
            f"{path}: is not a whole torch file ({reason[:200]}). It may be cut short by a full disk or a "
            "broken download; write or fetch it again.",
        ) from error
