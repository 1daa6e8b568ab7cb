"""One way to open weights, whoever wrote them, without running what is in the file."""

from __future__ import annotations

import os

from mirepoix.checkpoints._checkpoint import Checkpoint
from mirepoix.checkpoints._tensors import Framework

__all__ = ["open_weights"]


def open_weights(
    path: str | os.PathLike[str],
    *,
    framework: Framework = "torch",
    container: str | None = None,
    allow_expand: bool = False,
    allow_torch_load: bool = False,
    max_bytes: int | None = None,
) -> Checkpoint:
    """The weights in a file or a folder, as a read-only mapping that reads a tensor when it is asked for.

    A path is one of

    - a ``.safetensors`` file;
    - a torch file (``.pt``, ``.pth``, ``.th``, ``.bin``, ``.ckpt``), read without torch: the pickle in it is
      taken as data, and nothing it names is imported or called. If the weights are inside one of the usual
      containers (``state_dict``, ``model_state_dict``, ``model``, ``state_dict_ema``, ``teacher``,
      ``params``) they are taken from there; a prefix ``module.`` or ``_orig_mod.`` that all names share is
      dropped, and so is whatever is not a tensor;
    - the index of a model in shards (``model.safetensors.index.json``, ``pytorch_model.bin.index.json``);
    - a folder with a model (``model.safetensors``, else its shards, else ``pytorch_model.bin``) or an adapter
      (``adapter_model.safetensors``, ``adapter_model.bin``), or with any one file of the above.

    Files from strangers are safe to open: a file that breaks a rule of the readers is refused with
    `UnsafeCheckpoint`, whose ``rule`` names the rule.

    Args:
        path: The file, the index or the folder.
        framework: Whether tensors are torch's (on the CPU) or NumPy's (then torch is not imported).
        container: Which container of a torch file to take, where it has several; ``"."`` is the top level.
        allow_expand: Accept views of torch files that repeat stored elements (``expand``). Together the
            tensors still may not exceed four times the size of the file.
        allow_torch_load: Let torch read, by ``torch.load(weights_only=True)`` and at once, what is refused
            otherwise: files from before torch 1.6, and objects we do not know.
        max_bytes: The most bytes the tensors may have together.

    Raises:
        InputError: If there is no such file; it is damaged; it holds objects beyond tensors; it holds no
            tensors, or weights in several containers; or a folder has no or several files of weights.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from mirepoix.checkpoints import open_weights, write_weights
        >>> with TemporaryDirectory() as folder:
        ...     _ = write_weights(Path(folder, "w.safetensors"), {"bias": np.ones(2)})
        ...     open_weights(Path(folder, "w.safetensors"), framework="numpy")["bias"]
        array([1., 1.])
    """
    return Checkpoint(
        path,
        framework=framework,
        container=container,
        allow_expand=allow_expand,
        allow_torch_load=allow_torch_load,
        max_bytes=max_bytes,
    )
