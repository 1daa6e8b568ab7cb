"""Where a run starts: random weights, weights of a hub, or weights in a file someone else wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirepoix.checkpoints import open_weights
from mirepoix.models._branches import branch_weights
from mirepoix.models._multi_input import MultiInputNetwork, first_convolution, multi_input_weights
from mirepoix.models._spec import NetworkSpec, timm_config
from mirepoix.types import InputError

__all__ = ["initial_weights", "load_pretrained"]


def initial_weights(spec: NetworkSpec, *, seed: int = 0) -> dict[str, Tensor]:
    """The weights ``theta`` a network starts from: random, or timm's when the spec says ``pretrained``.

    The classifier is always new, from ``seed``.

    Raises:
        InputError: If the hub cannot be reached or has no weights of that name.
    """
    if not spec.pretrained:
        return {name: tensor.detach() for name, tensor in spec.build(seed=seed).state_dict().items()}
    import timm

    timm_config(spec.name)
    name = spec.name.removeprefix("timm:")
    try:
        # Three channels here: timm would spread the weights over other channels by a rule of its own.
        backbone = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's libraries raise many kinds, of several packages
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"network.pretrained: expected the weights of {name} from the model hub, got "
            f"{type(error).__name__} ({reason[:200]}). Without internet access, give a local file: "
            f'weights = "path/to/{name}.safetensors".'
        ) from error
    return load_pretrained(spec, backbone.state_dict(), seed=seed)


def load_pretrained(
    spec: NetworkSpec,
    path_or_weights: str | os.PathLike[str] | Mapping[str, Any],
    *,
    seed: int = 0,
    keep_classifier: bool = False,
) -> dict[str, Tensor]:
    """The full weights ``theta`` of a network, with the featurizer from a file.

    Understood are our own files (``featurizer.``, ``classifier.``), and bare backbones: CIFAR ResNets as
    widely shared (``conv1``, ``layer1.0.conv1``, ``linear``), timm models, torchvision ResNets. Where images
    have other than the 3 channels of the file, the first convolution is rebuilt from it: channel ``i`` gets
    the weights of channel ``i mod 3``. Floats are converted to the dtype of the network; missing batch-norm
    counters (old files have none) are 0.

    Args:
        spec: The network. Of several members, all begin with the featurizer of the file, each with its own classifier.
            Of several inputs, each encoder gets the first convolution of the file divided by their number, so that the
            network computes the features of the file when all see the same image.
        path_or_weights: A file that `open_weights` opens, or weights.
        seed: Of the new classifier.
        keep_classifier: Take the classifier of the file too, instead of a new one.

    Raises:
        InputError: If weights of the featurizer are missing, unexpected or of another shape; or the
            classifier is to be kept and the file has none of the right shape.
    """
    if isinstance(path_or_weights, Mapping):
        source, weights = "the weights given", path_or_weights
    else:
        source, weights = str(path_or_weights), open_weights(path_or_weights, allow_torch_load=True)
    if spec != spec.one_member():
        one = load_pretrained(spec.one_member(), weights, seed=seed, keep_classifier=keep_classifier)
        network = spec.build(seed=seed)
        whole = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        if isinstance(network, MultiInputNetwork):
            filled = multi_input_weights(one, network)
        else:
            filled = branch_weights([one] * spec.members, whole)
        return filled if keep_classifier else {**filled, **_classifiers(whole)}
    network = spec.build(seed=seed)
    theta = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    found = _our_names(spec, weights)
    if not keep_classifier:
        found = {name: key for name, key in found.items() if not name.startswith("classifier.")}
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in theta.items()
        if keep_classifier or name.startswith("featurizer.")
    }
    tensors = {name: _tensor(weights[key]) for name, key in found.items()}
    first = f"featurizer.{first_convolution(network.featurizer)}.weight"
    if first in tensors and tensors[first].ndim == 4 and tensors[first].shape[1] == 3 != spec.channels:
        tensors[first] = tensors[first][:, [i % 3 for i in range(spec.channels)]]
    _check(source, found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected)
    for name, tensor in tensors.items():
        theta[name] = tensor.to(theta[name].dtype, copy=True).contiguous()
    return theta


def _classifiers(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in theta.items() if name.startswith("classifier.")}


def _our_names(spec: NetworkSpec, weights: Mapping[str, Any]) -> dict[str, str]:
    """From our name of each tensor to its key in the file."""
    if any(key.startswith("featurizer.") for key in weights):
        return {key: key for key in weights}
    heads = [f"{head}." for head in _classifier_names(spec)]
    heads = [head for head in heads if any(key.startswith(head) for key in weights)]
    names = {}
    for key in weights:
        head = next((head for head in heads if key.startswith(head)), None)
        if head is None:
            names[f"featurizer.{key}"] = key
        else:  # a model distilled with two classifiers has none that could be kept, so these keep their names
            names[f"classifier.{key.removeprefix(head) if len(heads) == 1 else key}"] = key
    return names


def _classifier_names(spec: NetworkSpec) -> tuple[str, ...]:
    if not spec.name.startswith("timm:"):
        return ("linear", "fc", "classifier")
    names = timm_config(spec.name).classifier or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _tensor(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _check(
    source: str,
    keys: Mapping[str, str],
    got: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in expected if name not in got and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in got if name not in expected]
    misshapen = [name for name in got if name in expected and got[name] != expected[name]]
    if missing or unexpected or misshapen:
        parts = [
            _listed("missing", missing, lambda name: f"{name}, expected shape {expected[name]}"),
            _listed("unexpected", unexpected, lambda name: f"{keys[name]}, got shape {got[name]}"),
            _listed(
                "of another shape",
                misshapen,
                lambda name: f"{keys[name]}, expected shape {expected[name]}, got shape {got[name]}",
            ),
        ]
        raise InputError(
            f"{source}: expected {len(expected)} tensors of the network, got {len(got)}; "
            f"{'; '.join(filter(None, parts))}. Is it a file of another network, or are other channels or "
            "classes meant?"
        )


def _listed(what: str, names: list[str], describe: Callable[[str], str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > 10 else ""
    return f"{len(names)} {what}: {' | '.join(map(describe, names[:10]))}{more}"
