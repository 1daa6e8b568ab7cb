"""Do flat minima explain why averaged weights do well on a new domain? The question of figures 4.1 to 4.3.

Paper:    Rame et al. (2022), DiWA, section 4.2.2.2 and figures 4.1 to 4.3 of the thesis, on OfficeHome.
Command:  python examples/flatness.py
Time:     a minute on one core; with --quick, fifteen seconds.
Expected: over 5 seeds, a Hessian trace of 127 for ERM and of about 43 for its average, for SAM and for the average of
          SAM; OOD accuracies of 61, 66, 65 and 67 %. Equal flatness, and what SAM adds to the average is not clear.

Handwritten digits in six rotations; the first or the last is left out. ERM and SAM (sharpness-aware minimisation)
fine-tune the same pre-trained network with small, noisy batches; of each run, the last weights and the moving
average of its second half are measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirepoix.data import Split, digits_pretraining_task, digits_task, evaluation_batches
from mirepoix.diversity import ratio_error
from mirepoix.landscape import hessian_trace
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM, Objective
from mirepoix.predictions import predict
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer, snapshots
from mirepoix.types import Weights

SIZE = 8  # pixels, those of the digits
NETWORK = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
START = Run(steps=300, learning_rate=3e-3, batch_size=64)
FINE_TUNING = Run(steps=300, learning_rate=1e-2, batch_size=4, check_every=75, average_from=150)
RHO = 0.1  # of SAM
TARGETS = ("rotated_0", "rotated_75")  # the two ends: beyond all rotations of the training domains
SEEDS = 5


@dataclass(frozen=True)
class Row:
    """One method on one left-out domain.

    Attributes:
        trace: Of the Hessian of the training loss.
        correct: Whether each image of the left-out domain is classified correctly.
        checkpoints: Likewise for two checkpoints of the run, members first.
    """

    trace: float
    correct: Tensor
    checkpoints: Tensor


def pretrained() -> Weights:
    """The start of all runs: upright digits, none of which is in a domain."""
    split = digits_pretraining_task(size=SIZE).split(None)
    return trainer(ERM())(initial_weights(NETWORK), split, START)


def trainer(objective: Objective) -> Trainer:
    """A training that keeps the last weights, their moving average and checkpoints."""
    return Trainer(NETWORK, objective, Loop(device="cpu"), keep=("last", "moving_average", "snapshots"))


def rows(start: Weights, split: Split, name: str, objective: Objective, seed: int) -> dict[str, Row]:
    """Train once, and measure the last weights and the moving average."""
    model = NETWORK.build()
    weights = trainer(objective).fit(start, split, FINE_TUNING.with_(seed=seed)).weights
    batches = [batch for part in split.train for batch in evaluation_batches(part, split.task.transform)]
    [target] = split.test

    def correct(theta: Weights) -> Tensor:
        model.load_state_dict(dict(theta))
        logits = predict(model, evaluation_batches(target, split.task.transform))
        return logits.argmax(dim=1) == torch.as_tensor(target.labels)

    def trace(theta: Weights) -> float:
        return hessian_trace(model, theta, batches, samples=50, relative_error=0.1).value

    kept = list(snapshots(weights["snapshots"]).values())
    checkpoints = torch.stack([correct(kept[-2]), correct(kept[-1])])
    return {
        label: Row(trace(theta), correct(theta), checkpoints)
        for label, theta in ((name, weights["last"]), (f"MA of {name}", weights["moving_average"]))
    }


def per_seed(found: dict[str, list[Row]]) -> dict[str, tuple[float, float, float]]:
    """Mean trace and accuracy over the left-out domains, and the ratio-error of the pooled images, by method."""
    return {
        label: (
            statistics.mean(row.trace for row in rows_),
            torch.cat([row.correct for row in rows_]).double().mean().item(),
            ratio_error(torch.cat([row.checkpoints for row in rows_], dim=1)).item(),
        )
        for label, rows_ in found.items()
    }


def cell(values: Sequence[float], form: str) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{form}} ± {error:{form}}"


def main() -> None:
    """Train, measure, print, and check the claim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed and one left-out domain")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, start = digits_task(size=SIZE), pretrained()
    targets = TARGETS[-1:] if arguments.quick else TARGETS
    results: list[dict[str, tuple[float, float, float]]] = []
    for seed in range(1 if arguments.quick else SEEDS):
        found: dict[str, list[Row]] = {}
        for target in targets:
            split = task.split(target, data_seed=seed)
            for name, objective in (("ERM", ERM()), ("SAM", SAM(rho=RHO))):
                for label, row in rows(start, split, name, objective, seed).items():
                    found.setdefault(label, []).append(row)
        results.append(per_seed(found))

    print(
        "| weights | Hessian trace | OOD accuracy, % | ratio-error of two checkpoints |\n| --- | --- | --- | --- |"
    )
    for label in results[0]:
        traces, accuracies, ratios = zip(*(one[label] for one in results), strict=True)
        points = cell([100 * accuracy for accuracy in accuracies], ".1f")
        ratio = "" if label.startswith("MA") else cell(ratios, ".2f")
        print(f"| {label} | {cell(traces, '.0f')} | {points} | {ratio} |")

    trace, accuracy = (
        {label: statistics.mean(one[label][number] for one in results) for label in results[0]}
        for number in (0, 1)
    )
    for flatter in ("MA of ERM", "SAM"):
        assert trace[flatter] < trace["ERM"], f"expected {flatter} to be flatter than ERM, got {trace}"
    if len(results) > 1:
        assert accuracy["MA of ERM"] > accuracy["ERM"], f"expected the average to be better, got {accuracy}"
    print("\nThe average and SAM are both flatter than the end of ERM.")


if __name__ == "__main__":
    main()
