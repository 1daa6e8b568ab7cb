"""One LoRA adapter as PEFT saves it: which layers it changes, and by which product of factors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirepoix.checkpoints import read_json
from mirepoix.merging._inputs import open_source
from mirepoix.merging._rule import Array
from mirepoix.types import InputError

__all__ = [
    "CONFIG",
    "FLOATS",
    "PREFIX",
    "WEIGHTS",
    "LoraAdapter",
    "LoraLayer",
    "adapter_delta",
    "is_float",
    "open_adapter",
    "some",
    "widest",
]

FLOATS = ("F64", "F32", "F16", "BF16")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(
    re.escape(PREFIX)
    + r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(\.weight)?"
)
VALUE_HEAD = "v_head."
"""Trained beside the policy by reinforcement learning, and no part of it."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the base as it is."""

UNREADABLE = {
    "target_parameters": "adapts parameters instead of layers (target_parameters)",
    "trainable_token_indices": "replaces single tokens of an embedding (trainable_token_indices)",
    "use_qalora": "pools its inputs (use_qalora)",
    "use_bdlora": "has block-diagonal factors (use_bdlora)",
    "alora_invocation_tokens": "acts on a part of the tokens only (alora_invocation_tokens)",
    "arrow_config": "is routed per token (arrow_config)",
    "kasa_config": "has a diagonal between its factors (kasa_config)",
    "monteclora_config": "is random (monteclora_config)",
}
"""Settings under which the change of a weight is not :math:`s B A`."""


@dataclass(frozen=True, slots=True)
class LoraLayer:
    r"""One adapted layer: :math:`\Delta = s B A`, written down without its values.

    Attributes:
        module: Its name in the base model as PEFT sees it.
        rank: Rows of :math:`A`.
        scale: The number :math:`s`.
        a: Name and shape of :math:`A`: (r, in), for a convolution (r, in, \*kernel), for an embedding (r, words).
        b: Name and shape of :math:`B`: (out, r), for a convolution (out, r, 1, ...).
        bias: Name of the bias of :math:`B`, which changes the layer's bias by :math:`s b`; or None.
        magnitude: Name of DoRA's magnitudes, or None.
        code: The dtype of the factors (the wider one), as a code of safetensors.
    """

    module: str
    rank: int
    scale: float
    a: tuple[str, tuple[int, ...]]
    b: tuple[str, tuple[int, ...]]
    bias: str | None
    magnitude: str | None
    code: str

    @property
    def is_embedding(self) -> bool:
        """Whether it adapts a table, whose weight is the transpose of the product."""
        return self.a[0].endswith("lora_embedding_A")

    @property
    def is_convolution(self) -> bool:
        """Whether the factors have a kernel."""
        return len(self.a[1]) > 2

    @property
    def root(self) -> str:
        """The module whose settings it shares: the projections of one attention have one rank."""
        return self.module.split(".base_layer.")[0]

    @property
    def frame(self) -> tuple[Any, ...]:
        """What layers that are merged must have in common."""
        return self.is_embedding, self.a[1][1:], self.b[1][:1]


class LoraAdapter:
    """An adapter: its settings, which layers it changes, and any factor when it is asked for.

    Args:
        config: The settings, as in ``adapter_config.json``.
        weights: The tensors by name, in memory or lazy, as in ``adapter_model.safetensors``.
        label: What to call it in messages.
        folder: Where it lies, if it does.

    Attributes:
        config: As given.
        label: As given.
        folder: As given.
        files: The files of its tensors.
        layers: Each `LoraLayer` by the name of its module.
        others: Names of what else was trained and is no factor: biases, and modules that are saved whole.
        dropped: Names of tensors that are no part of the model (value heads).

    Raises:
        InputError: If this is no LoRA adapter, its change is not a product of two factors, or settings and
            tensors disagree.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Any],
        label: str = "adapter",
        folder: Path | None = None,
    ) -> None:
        self.config = dict(config)
        self.label = label
        self.folder = folder
        self._source = open_source(weights, label)
        self.files = () if self._source.checkpoint is None else self._source.checkpoint.files
        _check_config(self.config, label)
        parts: dict[str, dict[str, str]] = {}
        self.others: list[str] = []
        self.dropped: list[str] = []
        for name in self._source.names:
            if match := PART.fullmatch(name):
                parts.setdefault(match["module"], {})[match["part"]] = name
            elif name.startswith(VALUE_HEAD):
                self.dropped.append(name)
            elif not name.startswith(PREFIX) or ".lora_" in name:
                raise InputError(
                    f"{label}: expected tensors called {PREFIX}<module>.lora_A.weight and so on, got {name!r}. "
                    "Save the adapter with PEFT's save_pretrained."
                )
            else:
                self.others.append(name)
        if not parts:
            raise InputError(
                f"{label}: expected factors lora_A and lora_B, got none. This is no LoRA adapter."
            )
        self.layers = {module: self._layer(module, found) for module, found in parts.items()}

    def __repr__(self) -> str:
        return f"LoraAdapter({self.label!r}): {len(self.layers)} layers"

    def close(self) -> None:
        """Let go of the open file."""
        self._source.close()

    @property
    def uses_dora(self) -> bool:
        """Whether magnitudes are trained apart, so that the change is not linear in the parameters."""
        return any(layer.magnitude for layer in self.layers.values())

    def factors(self, module: str) -> tuple[Array, Array]:
        """``B`` (out, r) and ``A`` (r, in) in float64, unscaled; the kernel of a convolution is flattened."""
        layer = self.layers[module]
        b = self.values(layer.b[0]).reshape(layer.b[1][0], layer.rank)
        return b, self.values(layer.a[0]).reshape(layer.rank, -1)

    def values(self, name: str) -> Array:
        """Any float tensor, in float64.

        Raises:
            InputError: If it holds NaN or infinity.
        """
        shape = self._source.shape(name)
        values = self._source.wide(name, 0, math.prod(shape), np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{self.label}: {name!r} holds NaN or infinity. Did its training diverge?")
        return values.reshape(shape)

    def code(self, name: str) -> str:
        """The dtype of any tensor, as a code of safetensors."""
        return self._source.code(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of any tensor."""
        return self._source.shape(name)

    def bytes(self, name: str) -> bytes:
        """The content of any tensor."""
        return bytes(self._source.bytes(name))

    def _layer(self, module: str, parts: Mapping[str, str]) -> LoraLayer:
        table = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        keys = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        for key, other in (keys, keys[::-1]):
            if key not in parts:
                raise InputError(f"{self.label}: {module} has {other} without {key}. Save the adapter again.")
        (name_a, a), (name_b, b) = ((parts[key], self._source.shape(parts[key])) for key in keys)
        for name in (name_a, name_b):
            if not is_float(self._source.code(name)):
                raise InputError(
                    f"{self.label}: {name!r} has dtype {self._source.code(name)}, expected floats."
                )
        # Training sharded over devices, and saved without gathering, leaves empty or flat factors.
        if len(a) < 2 or len(a) != len(b) or 0 in (*a, *b) or any(n != 1 for n in b[2:]):
            raise InputError(
                f"{self.label}: {module} has factors of shapes {a} and {b}, expected (r, in) and (out, r), for a "
                "convolution with a kernel after them. Gather the shards and save the adapter again."
            )
        root = module.split(".base_layer.")[0]
        rank = _matched(self.config, "rank_pattern", root, self.config["r"], self.label)
        if a[0] != rank:
            raise InputError(
                f"{self.label}: {module} has rank {a[0]}, but {CONFIG} says {rank} (r and rank_pattern). "
                "Correct the settings, or save the adapter again."
            )
        if b[1] != rank:
            grouped = len(a) > 2 and rank % b[1] == 0
            raise InputError(
                f"{self.label}: {module} has factors of shapes {a} and {b}, whose ranks differ. "
                + (
                    "Convolutions in groups cannot be merged: leave the layer out."
                    if grouped
                    else "Save it again."
                )
            )
        alpha = _matched(self.config, "alpha_pattern", root, self.config["lora_alpha"], self.label)
        scale = alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank
        bias, magnitude = parts.get("lora_B.bias"), parts.get("lora_magnitude_vector")
        if bool(self.config.get("use_dora")) != (magnitude is not None):
            raise InputError(
                f"{self.label}: {module} has {'no ' if magnitude is None else ''}magnitudes, but {CONFIG} says "
                f"use_dora {self.config.get('use_dora')}. Save the adapter again."
            )
        code = widest([self._source.code(name_a), self._source.code(name_b)])
        return LoraLayer(module, rank, scale, (name_a, a), (name_b, b), bias, magnitude, code)


def open_adapter(folder: str | os.PathLike[str]) -> LoraAdapter:
    """Open the folder of an adapter as PEFT saves it; factors are read when they are asked for.

    Args:
        folder: It holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``, which is read
            without running what is in it).

    Raises:
        InputError: If it is no such folder; for other kinds of adapters, and for the settings of PEFT under
            which the change of a weight is not a scaled product of two factors; if settings and tensors
            disagree.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder}: expected the folder of an adapter, got no {CONFIG} in it. Check the path."
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: expected settings by name, got a {type(config).__name__}.")
    for name in (WEIGHTS, "adapter_model.bin"):
        if (folder / name).is_file():
            theta = open_source(folder / name, str(folder)).theta
            return LoraAdapter(config, theta, str(folder), folder)
    raise InputError(f"{folder}: expected {WEIGHTS} beside {CONFIG}, got neither it nor adapter_model.bin.")


def adapter_delta(adapter: LoraAdapter, module: str, *, transposed: bool | None = None) -> Array:
    r"""The change :math:`s B A` of one weight as a dense float64 array, shaped as the weight is in the base.

    Args:
        adapter: The adapter.
        module: One of ``adapter.layers``.
        transposed: Whether the base stores the weight of a linear layer as (in, out). By default as
            ``fan_in_fan_out`` says; PEFT changes that setting while it walks through a model that has both
            kinds, so do not trust it there.

    Raises:
        InputError: For a layer that is not adapted; with DoRA, where the change depends on the base; inside
            torch's own attention module, where it depends on the version of PEFT.
    """
    if module not in adapter.layers:
        raise InputError(
            f"{adapter.label}: {module!r} is not adapted, expected one of {some(list(adapter.layers))}."
        )
    layer = adapter.layers[module]
    if layer.magnitude:
        raise InputError(
            f"{adapter.label}: uses DoRA, whose change depends on the base. Use merge_into_base."
        )
    if layer.root != module:
        raise InputError(
            f"{adapter.label}: {module!r} is part of an attention of torch, whose change depends on the version of "
            "PEFT: 0.21.2 and earlier count it twice (huggingface/peft, pull request 3774)."
        )
    if transposed is None:
        transposed = bool(adapter.config.get("fan_in_fan_out"))
    b, a = adapter.factors(module)
    delta: Array = layer.scale * (b @ a)
    if layer.is_convolution:
        return delta.reshape(layer.b[1][0], *layer.a[1][1:])
    return delta.T if layer.is_embedding or transposed else delta


def _check_config(config: Mapping[str, Any], label: str) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{label}: expected a LoRA adapter, got peft_type {config.get('peft_type')!r} in {CONFIG}."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (
        type(rank) is not int
        or rank < 1
        or type(alpha) not in (int, float)
        or not math.isfinite(float(alpha or 0))
    ):
        raise InputError(
            f"{label}: expected numbers r and lora_alpha in {CONFIG}, got {rank!r} and {alpha!r}."
        )
    for key, what in UNREADABLE.items():
        if config.get(key):
            raise InputError(
                f"{label}: {what}, which cannot be merged here. Merge it into its base with PEFT first."
            )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise InputError(
            f"{label}: init_lora_weights {start!r} changed the base it was trained on, so it does not fit the base "
            "as published. Save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA."
        )


def _matched(config: Mapping[str, Any], key: str, module: str, default: Any, label: str) -> Any:
    """The value of the first pattern that fits the end of the module's name."""
    for pattern, value in (config.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise InputError(f"{label}: {key} has {pattern!r}, no regular expression: {error}.") from error
    return default


def is_float(code: str) -> bool:
    """Whether tensors of this dtype can be merged and written."""
    return code in FLOATS


def widest(codes: Sequence[str]) -> str:
    """The narrowest dtype that holds the values of all."""
    if len(set(codes)) == 1:
        return codes[0]
    if not all(code in FLOATS for code in codes):
        raise InputError(f"expected one dtype, or several floats, got {', '.join(sorted(set(codes)))}.")
    return "F64" if "F64" in codes else "F32"


def some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(repr, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
