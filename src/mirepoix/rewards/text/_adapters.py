r"""Experts and soups of adapters as weights: what the network computes with, not the factors behind it.

An expert is the start and an adapter, and a soup of experts is

.. math:: \theta_\lambda = \theta_{init} + \sum_i \lambda_i s_i B_i A_i .

Both are read-only mappings from names to dense tensors, computed tensor by tensor when they are asked for. So
`mirepoix.interpolate`, `mirepoix.merging` and every strategy do with them what the formula says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mirepoix.checkpoints import write_weights
from mirepoix.merging import LoraAdapter, LoraReport, adapter_delta, merge_adapters, merge_into_base
from mirepoix.rewards._experts import Expert
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from mirepoix.rewards.text._start import TextStart

__all__ = ["AdaptedWeights", "LoraMode", "interpolate_adapters", "soup"]

LoraMode: TypeAlias = Literal["delta", "factor"]


class AdaptedWeights(Mapping[str, Any]):
    r"""The weights :math:`\theta_{init} + \sum_i \lambda_i s_i B_i A_i` of an expert or a soup.

    They are computed when asked for, in float64, and rounded once to the dtype of the start. Tensors that no adapter
    changes are those of the start.

    Args:
        base: The weights the adapters were trained on.
        adapters: By the name of the expert, each one LoRA without anything else that was trained.
        coefficients: One per adapter; 1 for the only one.
        mode: ``"delta"`` is the formula. ``"factor"`` averages :math:`A` and :math:`B` apart, as the text experiments
            of rewarded soups did, which shrinks a soup of experts that disagree: see `mirepoix.merging.merge_adapters`.
        record: How an expert was made.

    Attributes:
        base: As given.
        adapters: As given.
        coefficients: As given.
        mode: As given.
        record: As given; empty for a soup.

    Raises:
        InputError: If the base lacks an adapted weight, or an adapter is more than LoRA.
    """

    def __init__(
        self,
        base: Weights,
        adapters: Mapping[str, LoraAdapter],
        coefficients: Mapping[str, float] | None = None,
        *,
        mode: LoraMode = "delta",
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.base = base
        self.adapters = dict(adapters)
        self.coefficients = dict(coefficients or dict.fromkeys(self.adapters, 1.0))
        self.mode = mode
        self.record = dict(record or {})
        if set(self.coefficients) != set(self.adapters):
            raise InputError(
                f"coefficients: expected one for each of {', '.join(self.adapters)}, got "
                f"{', '.join(self.coefficients)}."
            )
        self._modules: dict[str, str] = {}
        for label, adapter in self.adapters.items():
            if adapter.others or adapter.uses_dora:
                raise InputError(
                    f"adapter {label!r}: has more than plain LoRA factors. Merge it with "
                    "mirepoix.merging.merge_into_base."
                )
            for module in adapter.layers:
                if f"{module}.weight" not in base:
                    raise InputError(
                        f"adapter {label!r}: changes {module!r}, which the start does not have. Is it another model?"
                    )
                self._modules[f"{module}.weight"] = module
        if mode == "factor":
            self._check_factors()

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the weights that the adapters change."""
        return tuple(self._modules)

    @cached_property
    def start(self) -> dict[str, str]:
        """What an expert started from, as its record says; empty if it is not known."""
        return dict(self.record.get("start", {}))

    def __getitem__(self, name: str) -> Any:
        if name not in self._modules:
            return self.base[name]
        import torch

        value = self.base[name]
        change = self._change(self._modules[name], tuple(value.shape))
        return (value.to(torch.float64) + torch.from_numpy(change).to(value.device)).to(value.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        terms = " + ".join(f"{self.coefficients[label]:g} {label}" for label in self.adapters)
        return f"AdaptedWeights({terms})"

    def _change(self, module: str, shape: tuple[int, ...]) -> Any:
        used = [(adapter, self.coefficients[label]) for label, adapter in self.adapters.items()]
        used = [(adapter, share) for adapter, share in used if share and module in adapter.layers]
        change: Any
        if self.mode == "factor" and len(used) > 1:
            pairs = [adapter.factors(module) for adapter, _ in used]
            shares = [share for _, share in used]
            b, a = (np.tensordot(shares, np.stack([pair[i] for pair in pairs]), 1) for i in (0, 1))
            change = used[0][0].layers[module].scale * (b @ a)
            if used[0][0].config.get("fan_in_fan_out"):
                change = change.T
        else:
            change = sum(share * adapter_delta(adapter, module) for adapter, share in used)
        if not used:
            return np.zeros(shape)
        return change.copy() if change.shape == shape else change.T.copy()

    def _check_factors(self) -> None:
        total = sum(self.coefficients.values())
        if abs(total - 1) > 1e-6:
            raise InputError(
                f"lora_mode='factor': expected coefficients that sum to one, got {self.coefficients}."
            )
        first = next(iter(self.adapters.values()))
        for label, adapter in self.adapters.items():
            for module, layer in first.layers.items():
                other = adapter.layers.get(module)
                if other is None or (other.rank, other.scale) != (layer.rank, layer.scale):
                    raise InputError(
                        f"lora_mode='factor': {module!r} needs the same rank and scale in all adapters, and has not in "
                        f"{label!r}. Use lora_mode='delta'."
                    )

    def expert(self, name: str, reward: str | None = None) -> Expert:
        """As an expert for `mirepoix.rewards.sweep`, with what its record says about the start.

        Args:
            name: What coefficients call it.
            reward: What it was trained on; the name by default.
        """
        known = self.start
        return Expert(
            name,
            reward or name,
            self,
            start=known.get("weights"),
            metrics={key: self.record[key] for key in ("history", "seconds") if key in self.record},
            tokenizer=known.get("tokenizer"),
            generation=self.record.get("generation"),
            state={part: known[part] for part in ("config", "generation") if part in known},
        )

    def save_adapter(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> LoraReport:
        """Write one adapter that PEFT can load over the start; exact in the mode ``"delta"``, by longer factors.

        Args:
            folder: To write, whole or not at all.
            overwrite: Whether an adapter there may be replaced.

        Returns:
            What was written, with the error of each layer, which is 0 but for ``"factor"``.
        """
        mode: Literal["cat", "factor"] = "factor" if self.mode == "factor" else "cat"
        return merge_adapters(
            self.adapters,
            folder,
            self.coefficients,
            mode=mode,
            strict=False,
            same_base=False,
            overwrite=overwrite,
        )

    def save_model(self, folder: str | os.PathLike[str], start: TextStart) -> None:
        """Write a folder of transformers with dense weights, and tokenizer and settings of the start.

        Args:
            folder: To write, whole or not at all. It must not exist.
            start: Whose tokenizer and settings are copied.
        """
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"{folder}: exists already. Name another folder.")
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}-", suffix=".tmp"
        ) as place:
            made = Path(place) / "model"
            made.mkdir()
            for file in sorted(start.folder.iterdir()):
                if (
                    file.is_file()
                    and file.suffix in (".json", ".model", ".txt", ".jinja")
                    and "index" not in file.name
                ):
                    shutil.copyfile(file, made / file.name)
            (made / "mirepoix.json").unlink(missing_ok=True)
            if self.mode == "factor":
                write_weights(made / "model.safetensors", dict(self))
            else:
                merge_into_base(
                    self.base,
                    self.adapters,
                    made / "model.safetensors",
                    self.coefficients,
                    strict=False,
                    same_base=False,
                )
            made.rename(folder)

    def factor_report(self) -> LoraReport:
        r"""How far averaging the factors is from the exact soup, layer by layer.

        The error is :math:`\|s \sum_i \lambda_i (B_i - \bar B)(A_i - \bar A)\|_F`. It is computed whatever the mode.
        """
        with tempfile.TemporaryDirectory() as place:
            return merge_adapters(
                self.adapters, Path(place) / "factor", self.coefficients, mode="factor", same_base=False
            )


def soup(
    experts: Mapping[str, AdaptedWeights],
    coefficients: Mapping[str, float],
    *,
    lora_mode: LoraMode = "delta",
    force: bool = False,
) -> AdaptedWeights:
    r"""The rewarded soup :math:`\theta_\lambda` of experts that were trained as adapters of one start.

    Nothing is computed until a tensor is asked for. With the coefficient 1 for one expert it is that expert.

    Args:
        experts: By name.
        coefficients: By the name of the expert. They need not be on the simplex.
        lora_mode: ``"delta"`` is exact; see `AdaptedWeights`.
        force: Mix experts of which it is not known what they started from.

    Raises:
        InputError: If names differ; if the experts' records name different starts, tokenizers or settings of
            generation; if a record names none, without ``force``.

    References:
        Ramé et al. (2023), Rewarded soups, section 2.1.
    """
    if not experts:
        raise InputError("experts: expected at least one, got none.")
    if set(coefficients) != set(experts):
        raise InputError(
            f"coefficients: expected one number for each of {', '.join(experts)}, got "
            f"{', '.join(coefficients) or 'none'}."
        )
    if lora_mode not in ("delta", "factor"):
        raise InputError(f"lora_mode: expected 'delta' or 'factor', got {lora_mode!r}.")
    adapters: dict[str, LoraAdapter] = {}
    shares: dict[str, float] = {}
    first_name, first = next(iter(experts.items()))
    for name, expert in experts.items():
        if not isinstance(expert, AdaptedWeights):
            raise InputError(
                f"expert {name!r}: expected adapted weights, got {type(expert).__name__}. Dense weights are averaged "
                "by mirepoix.interpolate."
            )
        if not expert.start and not force:
            raise InputError(
                f"expert {name!r}: its record does not say what it started from. Pass force=True if you know that all "
                "experts have one start."
            )
        differing = [
            part for part in first.start if expert.start and expert.start.get(part) != first.start[part]
        ]
        if differing:
            raise InputError(
                f"experts {first_name!r} and {name!r}: have different starts ({', '.join(differing)}), so their soup "
                "means nothing. Train them from one start."
            )
        for label, adapter in expert.adapters.items():
            key = name if len(expert.adapters) == 1 else f"{name}.{label}"
            adapters[key] = adapter
            shares[key] = coefficients[name] * expert.coefficients[label]
    return AdaptedWeights(first.base, adapters, shares, mode=lora_mode)


def interpolate_adapters(
    thetas: Sequence[AdaptedWeights], coefficients: Sequence[float], *, force: bool = False
) -> AdaptedWeights:
    """`soup` of experts in order, in the form of `mirepoix.interpolate`, for strategies that combine.

    Raises:
        InputError: As `soup`; when the number of coefficients is not that of the experts.
    """
    members = list(thetas)
    if len(members) != len(coefficients):
        raise InputError(f"coefficients: expected {len(members)}, one per expert, got {len(coefficients)}.")
    names = [str(place) for place in range(len(members))]
    return soup(
        dict(zip(names, members, strict=True)), dict(zip(names, coefficients, strict=True)), force=force
    )
