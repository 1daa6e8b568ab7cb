"""One way to open weights, whoever wrote them, without running what is in the file."""

from __future__ import annotations

import errno
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirepoix.checkpoints._checkpoint import Checkpoint, existing_file
from mirepoix.checkpoints._tensors import Framework, build, raw
from mirepoix.types import InputError

__all__ = ["open_weights"]

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "teacher", "params")
WRAPPERS = ("module.", "_orig_mod.")
RESAVE = (
    "Where you trust the file, re-save its state_dict: torch.save(model.state_dict(), ...), or safetensors."
)


def open_weights(
    path: str | os.PathLike[str], *, framework: Framework = "torch", container: str | None = None
) -> Mapping[str, Any]:
    """The weights in a file, as a read-only mapping.

    A ``.safetensors`` file becomes a lazy `Checkpoint`. A torch file (``.pt``, ``.pth``, ``.th``, ``.bin``,
    ``.ckpt``) is read with ``weights_only=True`` and never otherwise. If the weights are inside one of the
    usual containers (``state_dict``, ``model_state_dict``, ``model``, ``state_dict_ema``, ``teacher``,
    ``params``) they are taken from there; a prefix ``module.`` or ``_orig_mod.`` that all names share is
    dropped, and so is whatever is not a tensor.

    Args:
        path: The file.
        framework: Whether tensors are torch's (on the CPU) or NumPy's.
        container: Which container of a torch file to take, where it has several.

    Raises:
        InputError: If there is no such file; it is damaged; it holds objects beyond tensors; it holds no
            tensors, or weights in several containers.
    """
    path = existing_file(path, "a file of weights")
    if path.suffix == ".safetensors":
        return Checkpoint(path, framework=framework)
    if path.suffix not in TORCH_SUFFIXES:
        raise InputError(
            f"{path}: expected a file of weights (.safetensors, {', '.join(TORCH_SUFFIXES)}), got suffix "
            f"{path.suffix!r}. Convert or rename it."
        )
    theta = _unwrap(_load(path), path, container)
    for wrapper in WRAPPERS * 2:  # at most both, in either order
        if all(name.startswith(wrapper) for name in theta):
            theta = {name.removeprefix(wrapper): tensor for name, tensor in theta.items()}
    if framework == "numpy":
        return {name: _to_numpy(f"{path}: {name}", tensor) for name, tensor in theta.items()}
    return theta


def _load(path: Path) -> Any:
    import torch

    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                # torch writes plain members; a small compressed file could unpack to fill the memory.
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise InputError(f"{path}: cannot be opened safely, its members are compressed. {RESAVE}")
        with warnings.catch_warnings():
            # Torch asks for a report about pickles it did not write; that it reads or refuses them is enough.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (InputError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"pickled objects beyond tensors ({name[1]})" if name else "something else than tensors"
        raise InputError(
            f"{path}: cannot be opened safely, it holds {what}. It was not run. {RESAVE}"
        ) from error
    except Exception as error:  # torch raises many kinds for bytes it cannot read, EINVAL for a cut zip file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: is not a whole torch file ({reason[:200]}). It may be cut short by a full disk or a "
            "broken download; write or fetch it again."
        ) from error


def _unwrap(loaded: Any, path: Path, container: str | None) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: expected weights by name, got a {type(loaded).__name__}. {RESAVE}")
    candidates = {name: _tensors(loaded[name]) for name in CONTAINERS if _tensors(loaded.get(name))}
    top = _tensors(loaded)
    if not candidates or any(
        tensor.ndim for tensor in top.values()
    ):  # a counter beside a container is no rival
        candidates["."] = top
    if container is not None:
        chosen = _tensors(loaded if container == "." else loaded.get(container))
        if not chosen:
            raise InputError(
                f"{path}: expected tensors in container {container!r}, got none. "
                f"Weights are in: {', '.join(name for name, found in candidates.items() if found) or 'none'}."
            )
        return chosen
    if len(candidates) > 1:
        raise InputError(
            f"{path}: expected weights in one place, got them in {', '.join(candidates)} ('.' is "
            "the top level). Choose with open_weights(path, container=...), or re-save the ones you mean."
        )
    (theta,) = candidates.values()
    if not theta:
        raise InputError(
            f"{path}: expected weights, got no tensors under {', '.join(map(repr, loaded))[:200]}."
        )
    return theta


def _tensors(value: Any) -> dict[str, Any]:
    import torch

    if not isinstance(value, Mapping):
        return {}
    return {
        name: item.detach()
        for name, item in value.items()
        if isinstance(name, str) and isinstance(item, torch.Tensor)
    }


def _to_numpy(name: str, tensor: Any) -> Any:
    content = raw(name, tensor)

    def fill(buffer: memoryview) -> None:
        buffer[:] = content.data

    return build(name, content.code, content.shape, fill, "numpy")
