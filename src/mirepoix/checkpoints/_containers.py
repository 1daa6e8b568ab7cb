"""Where the weights are in what a training script saved, and what their names were before it wrapped them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mirepoix.types import InputError

__all__ = ["RESAVE", "strip_wrappers", "unwrap"]

CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "teacher", "params")
WRAPPERS = ("module.", "_orig_mod.")
RESAVE = (
    "Where you trust the file, re-save its state_dict: torch.save(model.state_dict(), ...), or safetensors."
)


def unwrap(
    loaded: Any, where: str, container: str | None, is_tensor: Callable[[Any], bool]
) -> dict[str, Any]:
    """The tensors by name: of the container asked for, or of the only one there is; ``"."`` is the top."""

    def tensors(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {}
        return {name: item for name, item in value.items() if isinstance(name, str) and is_tensor(item)}

    if not isinstance(loaded, Mapping):
        raise InputError(f"{where}: expected weights by name, got {_kind(loaded)}. {RESAVE}")
    candidates = {name: found for name in CONTAINERS if (found := tensors(loaded.get(name)))}
    top = tensors(loaded)
    # A counter beside a container is no rival.
    if not candidates or any(len(tensor.shape) for tensor in top.values()):
        candidates["."] = top
    if container is not None:
        chosen = tensors(loaded if container == "." else loaded.get(container))
        if not chosen:
            raise InputError(
                f"{where}: expected tensors in container {container!r}, got none. "
                f"Weights are in: {', '.join(name for name, found in candidates.items() if found) or 'none'}."
            )
        return chosen
    if len(candidates) > 1:
        raise InputError(
            f"{where}: expected weights in one place, got them in {', '.join(candidates)} ('.' is "
            "the top level). Choose with open_weights(path, container=...), or re-save the ones you mean."
        )
    (theta,) = candidates.values()
    if not theta:
        raise InputError(
            f"{where}: expected weights, got no tensors under {', '.join(map(repr, list(loaded)[:10]))[:200]}."
        )
    return theta


def strip_wrappers(theta: dict[str, Any]) -> dict[str, Any]:
    """The tensors without the prefixes ``module.`` and ``_orig_mod.`` that all names share."""
    for wrapper in WRAPPERS * 2:  # at most both, in either order
        if all(name.startswith(wrapper) for name in theta):
            theta = {name.removeprefix(wrapper): tensor for name, tensor in theta.items()}
    return theta


def _kind(value: Any) -> str:
    name = type(value).__name__.strip("_").lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
