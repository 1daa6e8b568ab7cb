"""A rewarded soup of two networks that answer questions about scenes: one paid by BLEU-1, one by METEOR.

Paper:    Rame et al. (2023), Rewarded soups, the visual question answering experiment; here scenes of digits instead of
          VQA v2.
Command:  python examples/visual_questions.py
Time:     about five minutes on one core; with --smoke, fifteen seconds.
Expected: (BLEU-1, METEOR, exact) of the start (0.698, 0.419, 0.577), of the experts for BLEU-1 (0.680, 0.410, 0.566)
          and METEOR (0.674, 0.433, 0.523), of the uniform soup (0.681, 0.430, 0.541), of MORL (0.682, 0.438, 0.534).
          No soup earns less than the average of its experts. But the experts are close to each other, and MORL
          dominates most soups: the hypervolumes differ by less than noise. Fine-tuning for BLEU-1 gains on the
          training scenes and not on new handwriting, where the start earns most of it; METEOR is gained by longer
          answers, 1.64 words instead of 1.50.

A start learns the true answers by cross-entropy. Two experts are fine-tuned from it by REINFORCE, one for each reward,
and a third network for the mean of both (MORL). Their soups are then evaluated on other handwriting without training,
and by a measure that nobody was trained on: whether the answer is one of the true ones. A run that is killed goes on
where it stopped when it is started again with the same --out. Needs pip install 'mirepoix[text]'.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirepoix.checkpoints import write_atomically
from mirepoix.rewards import (
    RewardFront,
    compare_fronts,
    evaluate_policies,
    reward_connectivity,
    reward_curves,
    simplex_lattice,
    sweep,
)
from mirepoix.rewards.scenes import (
    SceneEvaluation,
    SceneRun,
    SceneTrainer,
    VisualQuestions,
    scene_expert,
    scene_start,
)
from mirepoix.store import Store
from mirepoix.strategies import morl

FULL: dict[str, Any] = {
    "task": VisualQuestions(train=8000, test=1000),
    "start": {"steps": 3000, "batch_size": 32, "learning_rate": 2e-3},
    "run": SceneRun(steps=100, batch_size=64, learning_rate=2e-4, seed=1),
    "intervals": 10,
}
SMOKE: dict[str, Any] = {
    "task": VisualQuestions(train=100, validation=10, test=50),
    "start": {"steps": 10, "batch_size": 8, "width": 16, "layers": 1},
    "run": SceneRun(steps=2, batch_size=4, normalise="none", seed=1),
    "intervals": 2,
}


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


def report(study: Mapping[str, Any], out: Path, *, claims: bool) -> None:
    """All of it, with the results in ``out``."""
    began = time.perf_counter()
    store, task, run = Store(out / "store"), study["task"], study["run"]

    def told(label: str) -> Callable[[int, int, Mapping[str, float]], None]:
        def tell(done: int, steps: int, means: Mapping[str, float]) -> None:
            if done % 100 == 0 or done == steps:
                numbers = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
                passed = time.perf_counter() - began
                print(f"[{passed:5.0f} s] {label}: {done} of {steps} steps; {numbers}", flush=True)

        return tell

    def train_of(reward: Mapping[str, float]) -> SceneTrainer:
        """The training for a reward, which is not repeated."""
        return SceneTrainer(reward=reward, store=store, on_progress=told(str(dict(reward))))

    start = scene_start(task, store, on_progress=told("start"), **study["start"])
    thetas = {name: train_of({name: 1.0})(start, task, run) for name in task.trained}
    even = dict.fromkeys(task.trained, 0.5)
    # MORL with one reward alone is the expert: the same training, which is found.
    preferences = [*({other: float(other == name) for other in thetas} for name in thetas), even]
    policies = list(morl(train_of, start, task, run, preferences))

    evaluate = SceneEvaluation(task, start, examples=task.test)
    kept = {"evaluation": evaluate.digest, "cache": out / "values"}
    experts = [scene_expert(name, theta, start, task=task) for name, theta in thetas.items()]
    soups = sweep(experts, simplex_lattice(task.trained, study["intervals"]), evaluate, **kept)
    scalarised = evaluate_policies(policies, preferences, evaluate, **kept)
    begun = evaluate_policies([start], [even], evaluate, label="start", **kept)
    found = evaluate.ensemble(thetas, even)
    values = [[found[name] for name in task.rewards]]
    ensemble = RewardFront(task.trained, task.rewards, (even,), values=values, label="ensemble of words")
    for front in (begun, soups, scalarised, ensemble):
        print(f"\n{front}")
        lines = [json.dumps({"front": front.label, **row}) for row in front.rows()]
        write_atomically(out / f"{front.label.replace(' ', '_')}.jsonl", "\n".join(lines) + "\n")

    connectivity = reward_connectivity(soups)
    print(f"\n{connectivity.verdict()}")
    print(f"\n{reward_curves(soups)}")
    said = {"start": start, **thetas, "MORL": policies[-1]}
    answers = {name: evaluate.answers(theta) for name, theta in said.items()}
    print("\nWords of an answer: ", end="")
    print(", ".join(f"{name} {sum(len(t.split()) for t in a) / len(a):.2f}" for name, a in answers.items()))
    print("\nSamples")
    for place, prompt in enumerate(evaluate.prompts(6)):
        print(f"{prompt}? {' | '.join(evaluate.references(6)[place])}")
        print("    " + ", ".join(f"{name}: {texts[place]}" for name, texts in answers.items()))
    if claims:
        print(f"\nSoups of two trainings, MORL of three:\n{compare_fronts(soups, scalarised)}")
        column = soups.columns(["meteor"])[0]
        assert soups.table()["meteor"]["meteor"] > begun.means[0, column], (
            "expected the METEOR expert to earn more METEOR than the start"
        )
        assert connectivity.above_chord, "expected the soups on or above the chord of the experts"


if __name__ == "__main__":
    main()
