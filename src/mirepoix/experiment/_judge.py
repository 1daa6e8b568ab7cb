"""One place that turns weights into predictions and scores, each computed once and kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mirepoix.checkpoints import fingerprint
from mirepoix.data import Split, Subset, evaluation_batches
from mirepoix.merging import reestimate_batch_norm
from mirepoix.metrics import accuracy
from mirepoix.models import NetworkSpec, has_batch_norm
from mirepoix.predictions import Predictions, predict
from mirepoix.seeds import generator
from mirepoix.store import Store, code_version
from mirepoix.types import Batch, Weights

__all__ = ["Judge"]

Part = Literal["validation", "test"]


class Judge:
    """Predicts with any weights of one network on the validation and test images of one split.

    Selections get `score`, which reads the validation part alone.
    """

    def __init__(
        self,
        network: NetworkSpec,
        split: Split,
        store: Store,
        device: torch.device,
        *,
        channels_last: bool = False,
        augment: bool = True,
    ) -> None:
        """Judge weights of a network on a split.

        Args:
            network: Of one member.
            split: Whose images are predicted, and whose training images batch norm is measured on.
            store: Keeps predictions.
            device: Where the network runs.
            channels_last: Memory layout of images and weights.
            augment: Whether the members saw augmented images. Batch-norm statistics must be those of what the network
                was trained on: without the crops of its training, averages of ResNets on CIFAR-10 lost four points.
        """
        self.augment = augment
        self.network, self.split, self.store, self.device = network, split, store, device
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.model = network.build().to(device).to(memory_format=self.layout)

    def subsets(self, part: Part) -> Sequence[Subset]:
        """The images of one part, a subset per domain."""
        return self.split.validation if part == "validation" else self.split.test

    def labels(self, part: Part) -> Tensor:
        """Their classes, domains one after another."""
        return torch.cat([torch.as_tensor(subset.labels) for subset in self.subsets(part)])

    def domains(self, part: Part) -> Tensor:
        """The number of the domain of each image."""
        return torch.cat([torch.full((len(s),), s.number, dtype=torch.long) for s in self.subsets(part)])

    def logits(self, theta: Weights, part: Part) -> Tensor:
        """Logits on every image of one part, shape (samples, classes)."""
        made_of = {
            "theta": fingerprint(theta),
            "network": self.network.to_dict(),
            "split": self.split.digest,
            "part": part,
            "target": self.split.target if part == "test" else None,
            "layout": str(self.layout),
            "code": code_version(),
        }

        def make(_: object) -> tuple[dict[str, Weights], dict[str, object]]:
            self.model.load_state_dict(dict(theta))
            transform = self.split.task.transform
            parts = [
                predict(self.model, evaluation_batches(subset, transform, device=self.device))
                for subset in self.subsets(part)
            ]
            return {"predictions": {"logits": torch.cat(parts)}}, {"status": "finished"}

        weights, _ = self.store.get_or_make("predictions", made_of, make)
        logits: Tensor = weights["predictions"]["logits"]
        return logits

    def predictions(self, thetas: Sequence[tuple[str, Weights]], part: Part) -> Predictions:
        """The named models on one part."""
        task = self.split.task
        return Predictions(
            torch.stack([self.logits(theta, part) for _, theta in thetas]),
            self.labels(part),
            self.domains(part),
            tuple(name for name, _ in thetas),
            task.classes,
            task.domain_names,
        )

    def score(self, theta: Weights) -> float:
        """Accuracy on all validation images pooled, so that domains weigh by size: what greedy soups use."""
        return float(accuracy(self.logits(theta, "validation"), self.labels("validation")))

    def refresh(self, theta: Weights) -> Weights:
        """What averaged weights need before they predict: nothing, or batch-norm statistics of their own."""
        if self.network.frozen_batch_norm or not has_batch_norm(self.network):
            return theta
        self.model.load_state_dict(dict(theta))
        transform = self.split.task.transform
        # As in training, a batch holds images of every source domain.
        domains = [
            itertools.islice(
                evaluation_batches(
                    subset,
                    transform,
                    batch_size=64,
                    device=self.device,
                    augmented=generator("batch norm", subset.name) if self.augment else None,
                ),
                32,
            )
            for subset in self.split.train
        ]
        joint = (_joint([batch for batch in row if batch]) for row in itertools.zip_longest(*domains))
        return reestimate_batch_norm(self.model, (batch for batch in joint if len(batch.labels) > 1))

    def id_accuracy(self, logits: Tensor) -> float:
        """Mean over source domains of the validation accuracy: what checkpoints and runs are chosen by."""
        labels, domains = self.labels("validation"), self.domains("validation")
        accuracies = [
            float(accuracy(logits[domains == number], labels[domains == number]))
            for number in torch.unique(domains)
        ]
        return sum(accuracies) / len(accuracies)

    def ood_accuracy(self, logits: Tensor) -> float:
        """Accuracy on all images of the target domain."""
        return float(accuracy(logits, self.labels("test")))


def _joint(batches: Sequence[Batch]) -> Batch:
    return Batch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.domains for batch in batches]),
    )
