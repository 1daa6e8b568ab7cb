"""Systems as numbers: what their predictions on the target are worth, how they differ, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mirepoix.calibration import calibrated
from mirepoix.checkpoints import fingerprint
from mirepoix.data import Split, Subset, evaluation_batches
from mirepoix.diversity import disagreement, normalised_difference, ratio_error
from mirepoix.ensembles import average_logits, average_probabilities
from mirepoix.metrics import accuracy, brier, ece, nll, top_k_accuracy
from mirepoix.models import NetworkSpec
from mirepoix.predictions import Predictions
from mirepoix.store import Store, code_version
from mirepoix.types import Batch, Weights

__all__ = [
    "MEASURES",
    "cost_of",
    "member_logits",
    "number",
    "predict_members",
    "predictions_of",
    "quality",
    "stored_member_logits",
]

MEASURES = (
    "accuracy",
    "member_accuracy",
    "accuracy_of_probabilities",
    "top5_accuracy",
    "nll",
    "calibrated_nll",
    "temperature",
    "ece",
    "brier",
    "ratio_error",
    "normalised_difference",
    "disagreement",
    "soup_accuracy",
    "members",
    "parameters",
    "forward_cost",
    "updates",
    "seconds",
)
"""The numbers of a system, in the order of tables; what does not apply is None."""


def quality(
    logits: Float[Tensor, "members samples classes"], labels: Int[Tensor, " samples"]
) -> dict[str, Any]:
    """What the predictions of the members of one system are worth, alone and together.

    Members' logits are averaged, but for ``accuracy_of_probabilities``; a temperature is fitted to the average, on one
    half of the samples for the other (`mirepoix.calibration.calibrated`). Diversity is the mean over pairs, and
    None for one member; a ratio-error of members that share no error is ``"infinite"``.
    """
    logits = logits.double()
    together = average_logits(logits)
    scaled = calibrated(together, labels)
    alone = [float(accuracy(own, labels)) for own in logits]
    predicted, several = logits.argmax(-1), len(logits) > 1
    return {
        "accuracy": float(accuracy(together, labels)),
        "member_accuracy": math.fsum(alone) / len(alone),
        "accuracy_of_probabilities": float(accuracy(average_probabilities(logits), labels)),
        "top5_accuracy": float(top_k_accuracy(together, labels)),
        "nll": number(nll(together, labels)),
        "calibrated_nll": number(scaled.nll),
        "temperature": number(scaled.temperature),
        "ece": float(ece(together, labels)),
        "brier": float(brier(together, labels)),
        "ratio_error": number(ratio_error(predicted == labels)) if several else None,
        "normalised_difference": number(normalised_difference(predicted, labels)) if several else None,
        "disagreement": number(disagreement(predicted)) if several else None,
        "member_accuracies": alone,
    }


def number(value: Any) -> float | str | None:
    """A number as JSON can hold it."""
    found = float(value)
    if math.isnan(found):
        return None
    return "infinite" if math.isinf(found) else found


# Predictions of members that share a network.


@torch.inference_mode()
def predict_members(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Logits of every member of a network on every sample, (members, samples, classes), on the CPU."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(batch.images).logits.float() for batch in batches], dim=1).cpu()
    finally:
        model.train(training)


def member_logits(
    network: NetworkSpec, theta: Weights, split: Split, parts: Iterable[Subset], device: torch.device
) -> Tensor:
    """Logits of the members of one network on some images."""
    model = network.build().to(device)
    model.load_state_dict(dict(theta))
    transform = split.task.transform
    found = [predict_members(model, evaluation_batches(part, transform, device=device)) for part in parts]
    return torch.cat(found, dim=1)


def stored_member_logits(
    network: NetworkSpec, theta: Weights, split: Split, store: Store, device: torch.device
) -> Tensor:
    """Those on the whole target, computed once and kept."""
    made_of = {
        "theta": fingerprint(theta),
        "network": network.to_dict(),
        "split": split.digest,
        "part": "test",
        "target": split.target,
        "of": "members",
        "code": code_version(),
    }

    def make(_: object) -> tuple[dict[str, Weights], dict[str, object]]:
        logits = member_logits(network, theta, split, split.test, device)
        return {"predictions": {"logits": logits}}, {"status": "finished"}

    weights, _ = store.get_or_make("predictions", made_of, make)
    logits: Tensor = weights["predictions"]["logits"]
    return logits


def predictions_of(split: Split, names: Iterable[str], logits: Tensor) -> Predictions:
    """The predictions of named members on the target."""
    labels = torch.cat([torch.as_tensor(subset.labels) for subset in split.test])
    domains = torch.cat(
        [torch.full((len(subset),), subset.number, dtype=torch.long) for subset in split.test]
    )
    return Predictions(logits, labels, domains, tuple(names), split.task.classes, split.task.domain_names)


# Cost.


def cost_of(network: NetworkSpec, networks: int, size: int) -> dict[str, Any]:
    """What a prediction of a system costs.

    Args:
        network: One network, or several members in one.
        networks: How many of them the system has.
        size: Of an image, in pixels.

    Returns:
        ``parameters``: of all networks; ``forward_cost``: multiplications of a prediction, in units of those of one
        plain network.
    """
    whole = network.build_empty()
    share = 1.0
    if network != network.one_member():
        share = _operations(network, size) / _operations(network.one_member(), size)
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    return {"parameters": networks * parameters, "forward_cost": networks * share}


def _operations(network: NetworkSpec, size: int) -> int:
    """Floating-point operations of one forward pass, counted without making it."""
    model = replace(network, pretrained=False).build_empty().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, network.channels, size, size, device="meta"))
    return int(counter.get_total_flops())
