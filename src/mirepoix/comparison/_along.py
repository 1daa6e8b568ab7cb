"""Members of one network along their training: accuracy, diversity, and the redundancy that it works against."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from mirepoix.comparison._measure import member_logits, number
from mirepoix.comparison._members import Bench, Made, part_of
from mirepoix.data import Split
from mirepoix.diversity import ratio_error
from mirepoix.ensembles import average_logits
from mirepoix.metrics import accuracy
from mirepoix.store import code_version
from mirepoix.training import snapshots
from mirepoix.types import Weights

__all__ = ["along"]


def along(bench: Bench, split: Split, made: Made) -> list[dict[str, Any]]:
    """What one joint training was at each of its checks, earliest first.

    Args:
        bench: Whose recipe says how many images of the target are predicted, the same at every check and for every
            system.
        split: That the training was on.
        made: The training, with the weights of its checks.

    Returns:
        For each check its ``step``; ``accuracy`` of the average of logits, ``member_accuracy`` and ``ratio_error`` on
        those images; and ``terms``, the means of the terms of the loss since the check before.
    """
    images = bench.recipe.evidence.images
    made_of = {
        "of": made.key,
        "split": split.digest,
        "target": split.target,
        "images": images,
        "code": code_version("comparison", "diversity", "metrics.py"),
    }

    def make(_: Path) -> tuple[dict[str, Weights], dict[str, Any]]:
        parts = [part_of(subset, images, "along", split.target) for subset in split.test]
        labels = torch.cat([torch.as_tensor(part.labels) for part in parts])
        found = bench.store.find("weights", made.key)
        assert found is not None  # it was made, or found, before
        weights, record = found
        kept, points = snapshots(weights["snapshots"]), []
        for check in record["checks"]:
            logits = member_logits(made.network, kept[check["step"]], split, parts, bench.device)
            alone = [float(accuracy(own, labels)) for own in logits]
            points.append(
                {
                    "step": check["step"] + 1,
                    "accuracy": float(accuracy(average_logits(logits), labels)),
                    "member_accuracy": math.fsum(alone) / len(alone),
                    "ratio_error": number(ratio_error(logits.argmax(-1) == labels)),
                    "terms": check.get("train_terms", {}),
                }
            )
        return {}, {"status": "finished", "points": points}

    _, record = bench.store.get_or_make("along", made_of, make)
    points: list[dict[str, Any]] = record["points"]
    return points
