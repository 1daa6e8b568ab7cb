"""Which reader opens a path: by the suffix of a file, by the names inside a folder."""

from __future__ import annotations

import os
from pathlib import Path

from mirepoix.checkpoints._containers import RESAVE
from mirepoix.checkpoints._entry import Layout
from mirepoix.checkpoints._layout import read_safetensors
from mirepoix.checkpoints._reader import existing_file, opened, read_bytes
from mirepoix.checkpoints._shards import INDEX, read_json_object, read_shards
from mirepoix.checkpoints._torch_load import read_by_torch
from mirepoix.checkpoints._torch_zip import read_torch_zip
from mirepoix.types import InputError, UnsafeCheckpoint

__all__ = ["TORCH_SUFFIXES", "read_weights"]

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")

ASK_TORCH = ("pickle-global", "pickle-reduce", "pickle-opcode", "pickle-memory", "view-odd")
"""What our own reader refuses because it knows little, not because the archive lies."""


def read_weights(path: Path, *, container: str | None, allow_expand: bool, allow_torch_load: bool) -> Layout:
    """Where the weights at a path lie: a file, the index of a model's shards, or a folder with one of those."""
    if path.is_dir():
        file, config = _in_folder(path)
        layout = _read_file(file, container, allow_expand, allow_torch_load)
        found = read_json_object(path / config) if (path / config).exists() else None
        return Layout(
            layout.files, layout.states, layout.entries, layout.metadata, layout.aliases, found, layout.loaded
        )
    return _read_file(existing_file(path, "a file of weights"), container, allow_expand, allow_torch_load)


def _read_file(path: Path, container: str | None, allow_expand: bool, allow_torch_load: bool) -> Layout:
    if path.name.endswith(INDEX):
        return read_shards(path, allow_expand=allow_expand)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    # Many training scripts write checkpoint.pth.tar, which has never been a tar archive.
    if Path(path.name.removesuffix(".tar")).suffix not in TORCH_SUFFIXES:
        raise InputError(
            f"{path}: expected a file of weights (.safetensors, {', '.join(TORCH_SUFFIXES)}, {INDEX}), got suffix "
            f"{path.suffix!r}. Rename it if it is one of these."
        )
    if _is_legacy(path):
        if not allow_torch_load:
            raise UnsafeCheckpoint(
                "legacy-torch",
                f"{path}: cannot be opened safely, it is a bare pickle, as torch wrote before version 1.6. It was "
                "not run. Open it with allow_torch_load=True (mirepoix convert --allow-torch-load), that is by "
                "torch.load(weights_only=True), which "
                f"reads all of it at once. {RESAVE}",
            )
        return read_by_torch(path, container=container)
    try:
        return read_torch_zip(path, container=container, allow_expand=allow_expand)
    except UnsafeCheckpoint as refused:
        if not (allow_torch_load and refused.rule in ASK_TORCH):
            raise
    return read_by_torch(path, container=container)


def _is_legacy(path: Path) -> bool:
    """Whether a torch file is a pickle or a tar archive instead of a zip archive."""
    with opened(path, "a torch file") as (descriptor, _):
        start = read_bytes(descriptor, 0, 512)
    if start.startswith(b"PK"):
        return False
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        return True
    raise UnsafeCheckpoint(
        "torch-magic",
        f"{path}: is not a whole torch file (it begins with {start[:8]!r}). It may be cut short by a full disk or a "
        "broken download; write or fetch it again.",
    )


def _in_folder(folder: Path) -> tuple[Path, str]:
    """The one file of weights in a folder, and the name of the model's description."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    known = [next((name for name in group if name in names), None) for group in (MODELS, ADAPTERS)]
    candidates = [name for name in known if name is not None] or [
        name for name in names if name.endswith((".safetensors", INDEX, *TORCH_SUFFIXES))
    ]
    if len(candidates) != 1:
        some = f"{', '.join(candidates[:5])}{', ...' if len(candidates) > 5 else ''}"
        raise InputError(
            f"{folder}: expected a folder with one model ({', '.join(MODELS)}) or adapter ({', '.join(ADAPTERS)}), "
            f"got {f'several files of weights ({some})' if candidates else 'no file of weights'}. Name one file."
        )
    (name,) = candidates
    return folder / name, "adapter_config.json" if name in ADAPTERS else "config.json"
