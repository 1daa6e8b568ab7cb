"""Where to compute: the accelerator when there is one, the processor always."""

from __future__ import annotations

import torch

from mirepoix.types import InputError

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or with ``auto`` the accelerator of this machine, or else its processor.

    Raises:
        InputError: If the named device is not here.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device: expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got {name!r}."
        ) from None
    if device.type != "cpu" and (here is None or here.type != device.type):
        raise InputError(
            f"device: {name!r} is not available here; this machine has {here or 'cpu'}. Use 'auto'."
        )
    if device.type != "cpu" and device.index is not None:
        count = torch.accelerator.device_count()
        if device.index >= count:
            raise InputError(f"device: {name!r} is not here; this machine has {count}, numbered from 0.")
    return device
