"""Predictions: the logits of every member on every sample, computed once and kept.

Combiners, metrics and diversity all work on these, so nothing is forwarded twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.types import Batch, InputError

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """Logits of several members on the same samples.

    Attributes:
        logits: Members first.
        labels: True class of each sample.
        domains: Domain of each sample, an index into ``domain_names``.
        members: A name for each member.
        classes: A name for each class.
        domain_names: A name for each domain.
    """

    logits: Float[Tensor, "members samples classes"]
    labels: Int[Tensor, " samples"]
    domains: Int[Tensor, " samples"]
    members: tuple[str, ...]
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]

    def __post_init__(self) -> None:
        members, samples, classes = self.logits.shape
        for what, expected, got in (
            ("members", members, len(self.members)),
            ("classes", classes, len(self.classes)),
            ("labels", samples, len(self.labels)),
            ("domains", samples, len(self.domains)),
        ):
            if expected != got:
                raise InputError(
                    f"predictions: logits of shape {tuple(self.logits.shape)} (members, samples, classes) "
                    f"need {expected} {what}, got {got}."
                )

    def __len__(self) -> int:
        """How many members."""
        return len(self.members)

    def of(self, members: Sequence[str]) -> Predictions:
        """Only the named members, in the order given.

        Raises:
            InputError: If a name is not among the members.
        """
        unknown = [name for name in members if name not in self.members]
        if unknown:
            raise InputError(
                f"predictions hold no member {unknown[0]!r}; they hold {', '.join(self.members)}."
            )
        chosen = torch.tensor([self.members.index(name) for name in members], dtype=torch.long)
        return Predictions(
            self.logits[chosen], self.labels, self.domains, tuple(members), self.classes, self.domain_names
        )

    def correct(self) -> Bool[Tensor, "members samples"]:
        """Whether each member classifies each sample correctly."""
        return self.logits.argmax(dim=-1) == self.labels

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the names go into its header."""
        names = {"members": self.members, "classes": self.classes, "domains": self.domain_names}
        write_weights(
            path,
            {"logits": self.logits, "labels": self.labels, "domains": self.domains},
            metadata={"mirepoix": "predictions", "names": json.dumps(names, ensure_ascii=False)},
        )

    @staticmethod
    def load(path: str | Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            InputError: If the file does not hold predictions.
        """
        file = open_weights(path)
        metadata = getattr(file, "metadata", None) or {}
        if metadata.get("mirepoix") != "predictions":
            raise InputError(
                f"{path}: expected predictions saved by mirepoix, got a file with the keys {', '.join(list(file)[:5])}."
            )
        names = json.loads(metadata["names"])
        return Predictions(
            file["logits"],
            file["labels"],
            file["domains"],
            tuple(names["members"]),
            tuple(names["classes"]),
            tuple(names["domains"]),
        )


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[Batch]) -> Float[Tensor, "samples classes"]:
    """Logits of one network on every sample, in order, on the CPU.

    The network is switched to evaluation for the while, and back.

    Args:
        model: Returns `mirepoix.types.Outputs`.
        batches: As from `mirepoix.data.evaluation_batches`.
    """
    training = model.training
    model.eval()
    try:
        logits = [model(batch.images).logits.float() for batch in batches]
    finally:
        model.train(training)
    if not logits:
        raise InputError("predict: expected at least one batch, got none.")
    return torch.cat(logits).cpu()
