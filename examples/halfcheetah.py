"""A rewarded soup of policies that walk: fast, or gently, or anything between, without further training.

Paper:    Rame et al. (2023), Rewarded soups, the locomotion experiment; here HalfCheetah instead of a humanoid.
Command:  python examples/halfcheetah.py
Time:     three minutes on one core; with --smoke, fifteen seconds.
Expected: returns (velocity, velocity - effort) of (1737, -3044) for the risky expert and (1279, -95) for the cautious
          one. All soups between them lie above the straight line from one to the other, though not all earn what the
          experts do on average; MORL with equal weights, (1701, -839), is about as good as the soups beside it, and so
          is the ensemble. The hypervolumes, with ideal and nadir shared, are 0.82 for the soups of two trainings and
          0.60 for MORL with three. Needs pip install 'mirepoix[control]'.

A start learns to walk with a small price on actions. Two experts are fine-tuned from it, one with no price and one
with the price 1, and a third policy with the mean of both rewards (MORL). Eleven interpolations of the two experts
are walked without training. A run that is killed goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mirepoix.checkpoints import write_atomically
from mirepoix.rewards import (
    RewardFront,
    compare_fronts,
    evaluate_policies,
    reward_connectivity,
    simplex_lattice,
    sweep,
)
from mirepoix.rewards.control import (
    HALFCHEETAH,
    Locomotion,
    LocomotionStudy,
    PolicyEvaluation,
    PPORun,
    PPOTrainer,
    initial_policy,
    policy_expert,
)
from mirepoix.store import Store, cached
from mirepoix.strategies import morl
from mirepoix.types import Train, Weights

SMOKE = LocomotionStudy(
    task=Locomotion(episode_steps=50),
    start_reward=HALFCHEETAH.start_reward,
    start=PPORun(steps=1024, rollout_steps=64, batch_size=64, learning_rate=5e-4, checkpoint_every=2),
    expert=PPORun(steps=512, rollout_steps=64, batch_size=64, learning_rate=1e-4, checkpoint_every=2, seed=1),
)


def told(label: str) -> Callable[[int, int, Mapping[str, float]], None]:
    """Prints how far a training is."""

    def tell(done: int, steps: int, means: Mapping[str, float]) -> None:
        rewards = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
        print(f"  {label}: {done:,} of {steps:,} steps; rewards per step: {rewards}", flush=True)

    return tell


def ensembles(front: RewardFront, thetas: Mapping[str, Weights], evaluate: PolicyEvaluation) -> RewardFront:
    """The mean actions of the experts averaged, with the coefficients of the soups: two networks at each step."""
    found = [evaluate.ensemble(thetas, shares) for shares in front.coefficients]
    values = [[one[name] for name in front.rewards] for one in found]
    return RewardFront(
        front.experts, front.rewards, front.coefficients, values=values, label="ensemble of actions"
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
        report(SMOKE if arguments.smoke else HALFCHEETAH, out, claims=not arguments.smoke)


def report(study: LocomotionStudy, out: Path, *, claims: bool) -> None:
    """All of it, with the results in ``out``."""
    store = Store(out / "store")

    def train_of(reward: Mapping[str, float]) -> Train:
        """The training for a reward, which is not repeated."""
        return cached(PPOTrainer(reward=reward, on_progress=told(str(dict(reward)))), store)

    first = initial_policy(study.task, hidden=study.hidden)
    starting = PPOTrainer(reward=study.start_reward, gather=True, on_progress=told("start"))
    start = cached(starting, store)(first, study.task, study.start)
    thetas = {name: train_of({name: 1.0})(start, study.task, study.expert) for name in study.task.rewards}
    # MORL with one reward alone is the expert: the same training, which is found.
    ends = [{name: float(name == expert) for name in thetas} for expert in thetas]
    preferences = [*ends, *study.morl]
    policies = list(morl(train_of, start, study.task, study.expert, preferences))

    evaluate = PolicyEvaluation(study.task, start, seeds=study.seeds)
    kept = {"evaluation": evaluate.digest, "cache": out / "values"}
    experts = [policy_expert(name, theta, start) for name, theta in thetas.items()]
    soups = sweep(experts, simplex_lattice(list(thetas), study.intervals), evaluate, **kept)
    scalarised = evaluate_policies(policies, preferences, evaluate, **kept)
    begun = evaluate_policies([start], [study.start_reward], evaluate, label="start", **kept)
    ensemble = ensembles(soups, thetas, evaluate)
    evaluate.close()

    for front in (begun, soups, scalarised, ensemble):
        print(f"\n{front}")
        lines = [json.dumps({"front": front.label, **row}) for row in front.rows()]
        write_atomically(out / f"{front.label.replace(' ', '_')}.jsonl", "\n".join(lines) + "\n")
    connectivity = reward_connectivity(soups)
    print(f"\n{connectivity.verdict()}")
    print(
        f"\nSoup and MORL, with the same number of steps for each training:\n{compare_fronts(soups, scalarised)}"
    )
    print(f"\nSoup and ensemble:\n{compare_fronts(soups, ensemble)}")
    if claims:
        assert connectivity.above_chord, "expected the soups above the line that joins the experts"
        assert soups.table()["risky"]["risky"] > begun.means[0, 0], (
            "expected the risky expert to be faster than the start"
        )


if __name__ == "__main__":
    main()
