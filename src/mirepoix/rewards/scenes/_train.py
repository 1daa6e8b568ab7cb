r"""``Train(theta, task; run)`` for scenes: self-critical training, REINFORCE with other answers as the baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards._normalise import Normaliser, none, zscore
from mirepoix.rewards.scenes._loop import Progress, descend, one_thread
from mirepoix.rewards.scenes._network import SceneNetwork, decode
from mirepoix.rewards.scenes._start import LIBRARIES, true_answers
from mirepoix.rewards.scenes._task import SceneTask, code_digest
from mirepoix.seeds import generator, stream
from mirepoix.store import Store, StoredWeights
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["SceneRun", "SceneTrainer", "advantages"]

BASELINES = ("leave_one_out", "greedy")
NORMALISATIONS = ("zscore", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRun:
    """The configuration of one training; the defaults suit a network as small as `scene_start`'s.

    Attributes:
        seed: Of the order of the images and of the answers.
        steps: Updates.
        batch_size: Images of an update.
        samples: Answers drawn for each image (5, as published).
        learning_rate: Of RAdam with betas 0.9 and 0.98 (as published), constant.
        baseline: What is subtracted from the reward of an answer: ``leave_one_out``, the mean reward of the other
            answers to the image; or ``greedy``, the reward of the most probable answer.
        normalise: ``zscore`` divides each reward by its standard deviation over samples of ``theta``, after their mean
            is taken away; ``none`` takes rewards as they are. It is the same for one reward and for a sum, so MORL
            with one reward alone is its expert.
        normaliser_samples: Images of the training part, with one drawn answer each, on which these constants are
            fitted.
    """

    seed: int = 0
    steps: int = 200
    batch_size: int = 16
    samples: int = 5
    learning_rate: float = 3e-4
    baseline: Literal["leave_one_out", "greedy"] = "leave_one_out"
    normalise: Literal["zscore", "none"] = "zscore"
    normaliser_samples: int = 512

    def __post_init__(self) -> None:
        def expect(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"run.{name}: expected {expected}, got {getattr(self, name)!r}.")

        for name in ("steps", "batch_size"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        expect(self.baseline in BASELINES, "baseline", f"one of {', '.join(BASELINES)}")
        least = 2 if self.baseline == "leave_one_out" else 1
        expect(self.samples >= least, "samples", f"at least {least} with the baseline {self.baseline!r}")
        expect(0 < self.learning_rate < math.inf, "learning_rate", "a positive number")
        expect(self.normalise in NORMALISATIONS, "normalise", f"one of {', '.join(NORMALISATIONS)}")
        expect(self.normaliser_samples >= 2, "normaliser_samples", "at least 2")

    def with_(self, **changes: Any) -> SceneRun:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class SceneTrainer:
    r"""``Train(theta, D; c)`` with the reward :math:`r = \sum_k \mu_k R_k`: an expert, or a MORL run.

    .. math:: L = \frac{1}{n s} \sum_{i=1}^{n} \sum_{j=1}^{s} (r_{ij} - b_{ij})
        \Bigl(-\sum_t \log p_\theta(y_{ij,t} | y_{ij,<t}, x_i)\Bigr) + w \, \mathrm{CE}

    for :math:`s` answers :math:`y_{ij}` drawn from the network to each of :math:`n` images, with the end of an answer
    among its tokens. The baseline is :math:`b_{ij} = \frac{1}{s - 1} \sum_{k \ne j} r_{ik}`, or the reward of the most
    probable answer. Each :math:`R_k` is on the scale that the run names, whether one is trained on or several. CE is
    the mean cross-entropy per token of a true answer, and :math:`w` the task's ``cross_entropy``; 0 for captions.

    Deterministic given its arguments, on CPU with one thread, which it always takes.

    Attributes:
        reward: From the name of a reward to its coefficient :math:`\mu_k`, used as given; those not named count 0.
            ``{"rouge": 1}`` trains an expert.
        store: Where results are kept, by what they were made of. A training that was killed continues there.
        save_every: Steps between two states that are saved, if there is a store. It does not change the result.
        on_progress: Called after each step with the steps done, all steps, and the mean of each reward in the step.

    Example:
        >>> expert = SceneTrainer(reward={"rouge": 1.0})
        >>> compromise = SceneTrainer(reward={"bleu1": 0.5, "rouge": 0.5})  # MORL

    References:
        Rennie et al. (2017), Self-critical sequence training for image captioning (the greedy baseline). Kool et al.
        (2019), Buy 4 REINFORCE samples, get a baseline for free! Thesis, appendix C.4.2: five samples, whose others
        are the baseline.
    """

    reward: Mapping[str, float]
    store: Store | None = None
    save_every: int = 25
    on_progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise InputError(f"save_every: expected at least 1 step, got {self.save_every}.")

    def made_of(self) -> dict[str, Any]:
        """What the trainer adds to the identity of its results."""
        return {
            "name": "self-critical",
            "reward": {name: float(share) for name, share in sorted(self.reward.items()) if share},
            "code": code_digest("_network.py", "_loop.py", "_start.py", "_train.py"),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        }

    def __call__(self, theta: Weights, task: SceneTask, run: SceneRun, /) -> Weights:
        """The weights reached from ``theta``, with the ``record`` of their training.

        The record has the constants of the rewards under ``normaliser`` and, for each step, the mean of each reward of
        the drawn answers (as it is, not as it was scaled) and the loss under ``history``.

        Args:
            theta: Where to start, usually from `scene_start`.
            task: Scenes and rewards.
            run: The configuration.

        Raises:
            Diverged: If the loss or a weight is not finite any more.
            InputError: If a reward is not the task's, or is the same for all samples of ``theta`` and cannot be
                scaled; if theta does not fit the task; for more images than there are.
        """
        shares = task.shares(self.reward)
        network = SceneNetwork(task, theta)
        for name, count in (("batch_size", run.batch_size), ("normaliser_samples", run.normaliser_samples)):
            if count > task.train and not (name == "normaliser_samples" and run.normalise == "none"):
                raise InputError(
                    f"run.{name}: expected at most the {task.train} images to train on, got {count}."
                )
        identity = {
            "theta": fingerprint(theta),
            "task": task.digest,
            "run": run.to_dict(),
            "train": self.made_of(),
        }

        def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
            scales = self.normaliser(theta, task, run)
            with one_thread():
                try:
                    record = self._descend(network, task, run, shares, scales, workspace)
                except Diverged as diverged:
                    return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}
            return {"last": network.weights()}, {**record, "normaliser": scales.to_dict()}

        if self.store is None:
            weights, record = make(None)
        else:
            found = self.store.get_or_make("scene-experts", identity, make)
            weights, record = dict(found[0]), found[1]
        if record["status"] == "diverged":
            raise Diverged(record["message"], record["step"])
        return StoredWeights(weights["last"], record)

    def normaliser(self, theta: Weights, task: SceneTask, run: SceneRun) -> Normaliser:
        """The scale of each reward, fitted on answers drawn from ``theta`` to training images.

        It depends on the run's ``normalise`` and ``normaliser_samples`` alone, so all experts of a soup and their MORL
        runs share it. It is kept in the record of every training that uses it. A reward that is the same for all
        answers has none.

        Raises:
            InputError: If that is a reward that is trained on.
        """
        if run.normalise == "none":
            return none(task.rewards)
        count = run.normaliser_samples
        identity = {
            "theta": fingerprint(theta),
            "task": task.digest,
            "count": count,
            "code": self.made_of()["code"],
            "libraries": self.made_of()["libraries"],
        }

        def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
            with one_thread():
                network = SceneNetwork(task, theta)
                examples = task.examples("train")
                scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in task.rewards}
                for first in range(0, count, 128):
                    rows = list(range(first, min(first + 128, count)))
                    drawn = decode(
                        [network],
                        [1.0],
                        examples.images[rows],
                        [examples.prompts[row] for row in rows],
                        generator=generator("scene normaliser", first),
                    )
                    for name, values in task.score(examples, rows, network.texts(drawn)).items():
                        scores[name].append(values)
            joined = {name: np.concatenate(parts) for name, parts in scores.items()}
            varying = {name: values for name, values in joined.items() if np.ptp(values) > 0}
            return {}, {"normaliser": zscore(varying).to_dict() if varying else none(()).to_dict()}

        _, record = (
            make(None) if self.store is None else self.store.get_or_make("scene-normalisers", identity, make)
        )
        fitted = Normaliser.from_dict(record["normaliser"])
        for name, share in self.reward.items():
            if share and name not in fitted.rewards:
                raise InputError(
                    f"reward {name!r}: is the same for all {count} samples of the start, so it has no scale. Train "
                    "the start for longer, or pass normalise='none' or more normaliser_samples."
                )
        return fitted

    def _descend(
        self,
        network: SceneNetwork,
        task: SceneTask,
        run: SceneRun,
        shares: tuple[float, ...],
        scales: Normaliser,
        workspace: Path | None,
    ) -> dict[str, Any]:
        examples = task.examples("train")
        coefficients = {name: share for name, share in zip(task.rewards, shares, strict=True) if share}
        optimizer = torch.optim.RAdam(
            network.model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), foreach=False
        )

        def reward(scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
            total = np.zeros(len(scores[task.rewards[0]]))
            for name, share in coefficients.items():
                total += share * scales.apply_to(name, scores[name])
            return total

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            rows = (
                stream(run.seed, "images", step).choice(len(examples), run.batch_size, replace=False).tolist()
            )
            images, prompts = examples.images[rows], [examples.prompts[row] for row in rows]
            draws = generator(run.seed, "answers", step)
            drawn = decode([network], [1.0], images, prompts, samples=run.samples, generator=draws)
            repeated = [row for row in rows for _ in range(run.samples)]
            scores = task.score(examples, repeated, network.texts(drawn))
            earned = reward(scores).reshape(run.batch_size, run.samples)
            greedy = None
            if run.baseline == "greedy":
                said = network.texts(decode([network], [1.0], images, prompts))
                greedy = reward(task.score(examples, rows, said))
            weights = torch.from_numpy(advantages(earned, greedy).reshape(-1)).float()

            seen = network.see(images)
            logs = network.log_probabilities(seen.repeat_interleave(run.samples, dim=0), drawn)
            loss = (weights * -logs.sum(dim=1)).mean()
            if task.cross_entropy:
                true = true_answers(network, examples, rows, run.seed, step)
                loss = loss - task.cross_entropy * (
                    network.log_probabilities(seen, true).sum() / true.answered.sum()
                )
            means = {name: float(values.mean()) for name, values in scores.items()}
            return loss, {**means, "loss": float(loss.detach())}

        return descend(
            network,
            optimizer,
            loss_of,
            steps=run.steps,
            learning_rate=lambda _: run.learning_rate,
            workspace=workspace,
            save_every=self.save_every,
            on_progress=self.on_progress,
        )


def advantages(
    rewards: NDArray[np.float64], greedy: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    r"""What each answer earned beyond its baseline: shape (images, samples).

    Args:
        rewards: Of the answers drawn to each image, shape (images, samples).
        greedy: Rewards of the most probable answers, shape (images,), as the baseline. By default it is the mean of
            the other answers to the image, so that :math:`r_j - b_j = \frac{s}{s-1} (r_j - \bar r)`.
    """
    if greedy is not None:
        return rewards - greedy[:, None]
    samples = rewards.shape[1]
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (samples - 1)
    found: NDArray[np.float64] = rewards - others
    return found
