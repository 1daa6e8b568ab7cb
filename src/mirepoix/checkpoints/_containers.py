"""Where the weights are in what a training script saved, and what their names were before it wrapped them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mirepoix.types import InputError

__all__ = ["RESAVE", "strip_wrappers", "unwrap"]

CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "teacher", "params")
NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|random|seed|loss|metric|callback|loop", re.IGNORECASE)
"""Names under which training scripts keep tensors that are no weights."""

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
    found = {name: tensors(value) for name, value in loaded.items() if isinstance(name, str)}
    candidates = {
        name: inside
        for name, inside in found.items()
        if inside and (name in CONTAINERS or (_are_weights(inside) and not NO_WEIGHTS.search(name)))
    }
    top = tensors(loaded)
    # A counter or a random state beside a container is no rival.
    if not candidates or _are_weights({name: x for name, x in top.items() if not NO_WEIGHTS.search(name)}):
        candidates["."] = top
    places = ", ".join("the top level ('.')" if name == "." else name for name, x in candidates.items() if x)
    if container is not None:
        chosen = tensors(loaded if container == "." else loaded.get(container))
        if not chosen:
            raise InputError(
                f"{where}: expected tensors in container {container!r}, got none. "
                f"Weights are in: {places or 'none'}."
            )
        return chosen
    if len(candidates) > 1:
        raise InputError(
            f"{where}: expected weights in one place, got them in {places}. Choose with container= (--container "
            f"{next(iter(candidates))}), or re-save the ones you mean."
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


def _are_weights(tensors: Mapping[str, Any]) -> bool:
    """Whether there is more than counters."""
    return any(len(tensor.shape) for tensor in tensors.values())


def _kind(value: Any) -> str:
    name = type(value).__name__.strip("_").lower().removesuffix("record")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
