"""A rewarded soup of diffusion models: digits that are legible, or bold, or anything between, without training.

Paper:    Rame et al. (2023), Rewarded soups, the diffusion experiment; here digits of 8 by 8 pixels.
Command:  python examples/diffusion_digits.py
Time:     three and a half minutes on one core; with --smoke, twenty seconds, most of them to import diffusers.
Expected: (legibility, boldness) of (1.98, 0.316) for the start, (2.84, 0.325) for the legible expert and (1.54, 0.364)
          for the bold one. No soup lies below the straight line from one expert to the other: (2.45, 0.343) with equal
          shares, much more legible than the experts are on average (2.19) and a little less bold (0.345), so linear
          mode connectivity, which asks for each reward alone, fails for boldness by up to 0.0018. MORL with equal
          weights, (2.45, 0.353), is as legible and bolder. The hypervolumes, with ideal and nadir shared, are 0.55 for
          the soups of two trainings and 0.50 for MORL with three. The ensembles, with two networks at each step, are
          less legible than the soups by up to 0.08 and as bold. Needs pip install 'mirepoix[diffusion]'.

A start learns to draw handwritten digits. It draws 1024 of them once; each expert learns again from the better half by
one reward, a third model by the mean of both (MORL). Eleven interpolations of the two experts draw from the same noise
as all others. Symmetry is a reward that nothing was trained on. A run that is killed goes on where it stopped when it
is started again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mirepoix.checkpoints import write_atomically
from mirepoix.rewards import (
    RewardFront,
    compare_fronts,
    evaluate_policies,
    reward_connectivity,
    simplex_lattice,
    sweep,
)
from mirepoix.rewards.diffusion import (
    DiffusionEvaluation,
    DiffusionRun,
    DiffusionTrainer,
    DigitDiffusion,
    diffusion_expert,
    diffusion_start,
)
from mirepoix.store import Store
from mirepoix.strategies import morl
from mirepoix.types import Train, Weights


@dataclass(frozen=True, kw_only=True)
class Study:
    """How large everything is."""

    task: DigitDiffusion
    start_steps: int
    run: DiffusionRun
    images: int
    steps: int


FULL = Study(task=DigitDiffusion(), start_steps=600, run=DiffusionRun(), images=256, steps=25)
SMOKE = Study(
    task=DigitDiffusion(channels=(8, 16)),
    start_steps=20,
    run=DiffusionRun(steps=4, batch_size=16, generated=64, sampling_steps=3),
    images=30,
    steps=3,
)


def told(label: str) -> Callable[[int, int, Mapping[str, float]], None]:
    """Prints how far a training is."""

    def tell(done: int, steps: int, means: Mapping[str, float]) -> None:
        print(f"  {label}: {done} of {steps} steps; loss {means['loss']:.4f}", flush=True)

    return tell


def ensembles(
    front: RewardFront, thetas: Mapping[str, Weights], evaluate: DiffusionEvaluation
) -> RewardFront:
    """Noise predictions averaged, with the coefficients of every second soup: two networks at each step."""
    coefficients = front.coefficients[::2]
    found = [evaluate.ensemble(thetas, shares) for shares in coefficients]
    values = [[one[name] for name in front.rewards] for one in found]
    return RewardFront(
        front.experts,
        front.rewards,
        coefficients,
        values=values,
        trained_on=front.trained_on,
        label="ensemble of noise predictions",
    )


def drawing(images: np.ndarray) -> str:
    """Some images side by side, in characters."""
    shades = np.array(list(" .:-=+*#%@"))
    return "\n".join(
        "  ".join("".join(shades[row // 26]) for row in rows) for rows in zip(*images, strict=True)
    )


def main() -> None:
    """Train, sweep, print, and check the claim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="trainings so short that nothing is learned")
    parser.add_argument(
        "--out", type=Path, help="folder for trainings and results; a temporary one by default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        report(SMOKE if arguments.smoke else FULL, out, claims=not arguments.smoke)


def report(study: Study, out: Path, *, claims: bool) -> None:
    """All of it, with the results in ``out``."""
    store, task = Store(out / "store"), study.task

    def train_of(reward: Mapping[str, float]) -> Train:
        """The training for a reward, which is not repeated."""
        return DiffusionTrainer(reward=reward, store=store, on_progress=told(str(dict(reward))))

    start = diffusion_start(task, store, steps=study.start_steps, on_progress=told("start"))
    thetas = {name: train_of({name: 1.0})(start, task, study.run) for name in task.rewards}
    # MORL with one reward alone is the expert: the same training, which is found.
    ends = [{name: float(name == expert) for name in thetas} for expert in thetas]
    even = dict.fromkeys(thetas, 0.5)
    policies = list(morl(train_of, start, task, study.run, [*ends, even]))

    evaluate = DiffusionEvaluation(task, start, images=study.images, steps=study.steps)
    kept = {"evaluation": evaluate.digest, "cache": out / "values"}
    experts = [diffusion_expert(name, theta, start) for name, theta in thetas.items()]
    soups = sweep(experts, simplex_lattice(list(thetas), 10), evaluate, **kept)
    scalarised = evaluate_policies(policies, [*ends, even], evaluate, **kept)
    begun = evaluate_policies([start], [even], evaluate, label="start", **kept)
    ensemble = ensembles(soups, thetas, evaluate)

    print(f"\n{', '.join(evaluate.prompts(10))}, by the start and by the experts:")
    for name, theta in {"start": start, **thetas}.items():
        print(f"{name}\n{drawing(evaluate.images_of(theta, 10))}")
    for front in (begun, soups, scalarised, ensemble):
        print(f"\n{front}")
        lines = [json.dumps({"front": front.label, **row}) for row in front.rows()]
        write_atomically(out / f"{front.label.replace(' ', '_')}.jsonl", "\n".join(lines) + "\n")
    connectivity = reward_connectivity(soups)
    print(f"\n{connectivity.verdict()}")
    print(f"\nSoup and MORL, with the same steps for each training:\n{compare_fronts(soups, scalarised)}")
    gap = np.abs(soups.means[::2] - ensemble.means).max(axis=0)
    told_gap = ", ".join(f"{name} {value:.4f}" for name, value in zip(soups.rewards, gap, strict=True))
    print(f"\nSoup and ensemble differ by at most: {told_gap}")
    if claims:
        first = dict(zip(begun.rewards, begun.means[0], strict=True))
        for name in thetas:
            assert soups.table()[name][name] > first[name], f"expected the {name} expert to raise its reward"


if __name__ == "__main__":
    main()
