"""``Train(theta, task; run)`` for locomotion: proximal policy optimisation by Stable-Baselines3.

A training is a sequence of stretches of a few rollouts. At the beginning of each the environments are reset and all
that is random is seeded by (run, what it is for, number of the stretch). So the state between two stretches is the
policy, its optimizer and the statistics: simulators and generators need not be saved, and a run that was killed
continues with the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.control._locomotion import Locomotion, gymnasium
from mirepoix.rewards.control._normaliser import CLIP, EPSILON, NAMES, ObservationNormaliser
from mirepoix.rewards.control._policy import architecture, load_policy_
from mirepoix.seeds import seed_hash
from mirepoix.store import key_of
from mirepoix.training._interruption import load_state, save_state
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["PPOFit", "PPORun", "PPOTrainer"]

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each stretch with the steps done, the steps of the run, and the mean of each reward per step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PPORun:
    """The configuration of one training; the defaults are those of an expert on HalfCheetah.

    Attributes:
        seed: Of everything random: environments, actions, order of the samples.
        steps: Environment steps, over all environments; rounded up to whole rollouts.
        learning_rate: Of Adam, constant. A new optimizer for every training.
        environments: That are stepped side by side in one process.
        rollout_steps: Of each environment between two updates of the policy.
        batch_size: Steps in a minibatch; divides ``environments * rollout_steps``.
        epochs: Passes over a rollout.
        gamma: Discount factor.
        gae_lambda: Of generalised advantage estimation (0.95, as in Stable-Baselines3).
        clip_range: Of the ratio of probabilities (0.2).
        entropy_coefficient: Of the entropy bonus (0).
        value_coefficient: Of the loss of the value function (0.5).
        max_gradient_norm: (0.5).
        checkpoint_every: Rollouts in a stretch: then the state is saved, and the environments are reset. It is part
            of what decides the result.
        collect: Which weights are the result: the ``last``, or ``snapshots`` after each stretch.

    References:
        Schulman et al. (2017), Proximal policy optimization algorithms.
    """

    seed: int = 0
    steps: int = 100_000
    learning_rate: float = 1e-4
    environments: int = 4
    rollout_steps: int = 512
    batch_size: int = 256
    epochs: int = 8
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_coefficient: float = 0.0
    value_coefficient: float = 0.5
    max_gradient_norm: float = 0.5
    checkpoint_every: int = 10
    collect: Literal["last", "snapshots"] = "last"

    def __post_init__(self) -> None:
        def expect(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise InputError(f"run.{field}: expected {expected}, got {getattr(self, field)!r}.")

        for field in ("steps", "environments", "rollout_steps", "epochs", "checkpoint_every"):
            expect(getattr(self, field) >= 1, field, "at least 1")
        for field in ("learning_rate", "clip_range", "max_gradient_norm"):
            expect(0 < getattr(self, field) < math.inf, field, "a positive number")
        for field in ("entropy_coefficient", "value_coefficient"):
            expect(0 <= getattr(self, field) < math.inf, field, "0 or more")
        for field in ("gamma", "gae_lambda"):
            expect(0 <= getattr(self, field) <= 1, field, "a number in [0, 1]")
        expect(
            self.batch_size >= 2 and self.rollout_size % self.batch_size == 0,
            "batch_size",
            f"2 or more, a divisor of the {self.rollout_size} steps of a rollout",
        )
        expect(self.collect in ("last", "snapshots"), "collect", "'last' or 'snapshots'")

    @property
    def rollout_size(self) -> int:
        """Steps of a rollout over all environments."""
        return self.environments * self.rollout_steps

    @property
    def rollouts(self) -> int:
        """Rollouts of the run."""
        return -(-self.steps // self.rollout_size)

    def with_(self, **changes: Any) -> PPORun:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class PPOFit:
    """What one training gives.

    Attributes:
        weights: ``last``, and ``snapshots`` if they are kept: the weights after each stretch, named by the steps
            done, which `mirepoix.training.snapshots` takes apart.
        record: How it went: the mean rewards per step of each stretch (with exploration), seconds.
    """

    weights: Mapping[str, Weights]
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PPOTrainer:
    r"""``Train(theta, D; c)`` with the reward :math:`\sum_k \mu_k R_k`: an expert, a MORL run, or the start of all.

    Deterministic given its arguments, on CPU with one thread, which it always takes: networks this small are not
    faster on an accelerator. `mirepoix.store.cached` keeps its results and lets a killed training continue.

    A fine-tuning normalises observations and scales the reward by the statistics it finds in ``theta``, and
    does not move them. The start, with ``gather=True``, finds none and gathers them.

    Attributes:
        reward: From the name of a reward to its coefficient :math:`\mu_k`, used as given; those not named count 0.
            ``{"risky": 1}`` trains an expert.
        gather: Whether to gather statistics along the way: for the start, and for nothing that is averaged.
        keep: Which weights every training gives: ``last``, ``snapshots``.
        on_progress: Called after each stretch.

    Example:
        >>> expert = PPOTrainer(reward={"risky": 1.0})
        >>> compromise = PPOTrainer(reward={"risky": 0.5, "cautious": 0.5})  # MORL
        >>> start = PPOTrainer(reward={"risky": 0.9, "cautious": 0.1}, gather=True)
    """

    reward: Mapping[str, float]
    gather: bool = False
    keep: tuple[str, ...] = ("last", "snapshots")
    on_progress: Progress | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in self.keep:
            if name not in ("last", "snapshots"):
                raise InputError(f"keep: expected some of last, snapshots, got {name!r}.")

    def made_of(self) -> dict[str, Any]:
        """What the trainer adds to the identity of its results."""
        return {
            "name": "ppo",
            "reward": {name: float(share) for name, share in sorted(self.reward.items()) if share},
            "gather": self.gather,
            "keep": sorted(set(self.keep)),
            "code": _code_version(),
            "libraries": {
                name: metadata.version(name) for name in ("stable-baselines3", "gymnasium", "mujoco")
            },
        }

    def __call__(self, theta: Weights, task: Locomotion, run: PPORun, /) -> Weights:
        """The weights that ``run.collect`` names."""
        return self.fit(theta, task, run).weights[run.collect]

    def fit(self, theta: Weights, task: Locomotion, run: PPORun, *, workspace: Path | None = None) -> PPOFit:
        """Train, and return the weights that are kept.

        Args:
            theta: Where to start: weights of policy and value function, with statistics unless they are gathered.
            task: Environment and rewards.
            run: The configuration.
            workspace: Folder for the state of the unfinished run, made if it is not there. A second call with the
                same arguments and folder continues there.

        Raises:
            Diverged: If weights or actions are not finite any more.
            InputError: If theta does not fit the task, has statistics that are to be gathered or lacks those that
                are not; for a reward that is not there; if the folder holds the state of another run.
        """
        gymnasium()
        shares = task.shares(self.reward)
        gathered = [name for name in NAMES if name in theta]
        if self.gather and gathered:
            raise InputError(
                f"gather: expected a start without observation statistics, theta has {gathered[0]!r}. "
                "Fine-tune it with gather=False, which keeps its statistics."
            )
        normaliser = None if self.gather else ObservationNormaliser.from_weights(theta)
        with _own_generators():
            fitting = _Fitting(self, theta, task, run, shares, normaliser, workspace)
            try:
                return fitting.run_to_end()
            finally:
                fitting.environments.close()


class _Fitting:
    """One training under way."""

    def __init__(
        self,
        trainer: PPOTrainer,
        theta: Weights,
        task: Locomotion,
        run: PPORun,
        shares: tuple[float, ...],
        normaliser: ObservationNormaliser | None,
        workspace: Path | None,
    ) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

        self.trainer, self.task, self.run = trainer, task, run
        self.kept = {*trainer.keep, run.collect}
        made = DummyVecEnv([functools.partial(task.make, shares, normaliser)] * run.environments)
        self.environments: Any = VecNormalize(
            made,
            training=normaliser is None,
            norm_obs=normaliser is None,
            gamma=run.gamma,
            clip_obs=CLIP,
            clip_reward=CLIP,
            epsilon=EPSILON,
        )
        if normaliser is not None:
            self.environments.ret_rms.var = normaliser.return_variance.astype(np.float64)
        self.normaliser = normaliser
        self.ppo: Any = PPO(
            "MlpPolicy",
            self.environments,
            learning_rate=run.learning_rate,
            n_steps=run.rollout_steps,
            batch_size=run.batch_size,
            n_epochs=run.epochs,
            gamma=run.gamma,
            gae_lambda=run.gae_lambda,
            clip_range=run.clip_range,
            ent_coef=run.entropy_coefficient,
            vf_coef=run.value_coefficient,
            max_grad_norm=run.max_gradient_norm,
            policy_kwargs={"net_arch": architecture(theta)},
            device="cpu",
        )
        self.ppo.set_logger(Logger(folder=None, output_formats=[]))  # else it makes a folder of its own
        load_policy_(self.ppo.policy, theta, task)
        self.rollout = 0
        self.checks: list[dict[str, Any]] = []
        self.snapshots: dict[str, torch.Tensor] = {}
        self.seconds = 0.0
        self.state_file = workspace / "state.bin" if workspace else None
        if self.state_file:
            self.state_file.parent.mkdir(parents=True, exist_ok=True)
            self.identity = key_of(
                {
                    "theta": fingerprint(theta),
                    "task": task.digest,
                    "run": run.to_dict(),
                    "train": trainer.made_of(),
                }
            )
            self.resume()

    def run_to_end(self) -> PPOFit:
        run = self.run
        while self.rollout < run.rollouts:
            started = time.monotonic()
            means = self.stretch(min(run.checkpoint_every, run.rollouts - self.rollout))
            steps = self.rollout * run.rollout_size
            self.checks.append({"step": steps, "rewards": means})
            if "snapshots" in self.kept:
                self.snapshots |= {f"{steps:06d}/{name}": tensor for name, tensor in self.weights().items()}
            self.seconds += time.monotonic() - started
            if self.state_file:
                self.save()
            if self.trainer.on_progress:
                self.trainer.on_progress(steps, run.rollouts * run.rollout_size, means)
        weights: dict[str, Weights] = {"last": self.weights(), "snapshots": self.snapshots}
        record = {
            "status": "finished",
            "steps": run.rollouts * run.rollout_size,
            "checks": self.checks,
            "seconds": round(self.seconds, 3),
            "device": "cpu",
        }
        return PPOFit({name: weights[name] for name in sorted(self.kept)}, record)

    def stretch(self, rollouts: int) -> dict[str, float]:
        """Some rollouts and their updates, from fresh environments; the mean of each reward per step."""
        run, total, count = self.run, np.zeros(len(self.task.rewards)), 0

        def watch(local: Mapping[str, Any], _: Any) -> bool:
            nonlocal total, count
            total = total + np.sum([info["rewards"] for info in local["infos"]], axis=0)
            count += len(local["infos"])
            return True

        # Stable-Baselines3 draws actions from torch's generator and the order of samples from NumPy's.
        torch.manual_seed(seed_hash(run.seed, "actions", self.rollout))
        np.random.seed(seed_hash(run.seed, "order", self.rollout))  # noqa: NPY002
        self.environments.seed(seed_hash(run.seed, "environments", self.rollout))
        try:
            self.ppo.learn(
                rollouts * run.rollout_size, callback=watch, log_interval=None
            )  # resets the environments
            if not all(torch.isfinite(tensor).all() for tensor in self.ppo.policy.state_dict().values()):
                raise FloatingPointError("weights of the policy are not finite")
        except (FloatingPointError, ValueError) as error:
            problem = str(error)
            if isinstance(error, ValueError):
                if "to satisfy the constraint" not in problem:  # torch's words for a Gaussian that is none
                    raise
                problem = "mean or deviation of the policy are not finite"
            step = self.rollout * run.rollout_size + count
            raise Diverged(
                f"the training diverged after {step:,} steps: {problem}. A smaller learning_rate may help, got "
                f"{run.learning_rate}.",
                step,
            ) from error
        self.rollout += rollouts
        return {name: float(mean) for name, mean in zip(self.task.rewards, total / count, strict=True)}

    def weights(self) -> dict[str, torch.Tensor]:
        """Policy, value function and statistics as they are now."""
        own = {name: tensor.detach().clone() for name, tensor in self.ppo.policy.state_dict().items()}
        statistics = self.normaliser or ObservationNormaliser(
            self.environments.obs_rms.mean, self.environments.obs_rms.var, self.environments.ret_rms.var
        )
        return {**own, **statistics.buffers()}

    def save(self) -> None:
        assert self.state_file is not None
        state = {
            "identity": self.identity,
            "rollout": self.rollout,
            "policy": self.ppo.policy.state_dict(),
            "optimizer": self.ppo.policy.optimizer.state_dict(),
            "statistics": {name: _moments(moments) for name, moments in self.moving_statistics().items()},
            "checks": self.checks,
            "snapshots": self.snapshots,
            "seconds": self.seconds,
        }
        save_state(self.state_file, state)

    def resume(self) -> None:
        assert self.state_file is not None
        state = load_state(self.state_file)
        if state is None:
            return
        if state["identity"] != self.identity:
            raise InputError(
                f"{self.state_file}: expected the state of this run, got that of another one. Give each run a "
                "folder of its own, or remove the file."
            )
        self.ppo.policy.load_state_dict(state["policy"])
        self.ppo.policy.optimizer.load_state_dict(state["optimizer"])
        for name, moments in self.moving_statistics().items():
            saved = state["statistics"][name]
            moments.mean, moments.var, moments.count = (
                saved["mean"].numpy(),
                saved["var"].numpy(),
                saved["count"],
            )
        self.rollout, self.seconds = state["rollout"], state["seconds"]
        self.checks, self.snapshots = state["checks"], state["snapshots"]

    def moving_statistics(self) -> dict[str, Any]:
        """Running moments that are gathered, none in a fine-tuning."""
        if self.normaliser is not None:
            return {}
        return {"observations": self.environments.obs_rms, "returns": self.environments.ret_rms}


def _moments(moments: Any) -> dict[str, Any]:
    return {
        "mean": torch.tensor(np.asarray(moments.mean)),
        "var": torch.tensor(np.asarray(moments.var)),
        "count": float(moments.count),
    }


@contextmanager
def _own_generators() -> Iterator[None]:
    """Global generators and the number of threads are afterwards what they were."""
    python, arrays, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    torch.set_num_threads(1)  # the bits of a sum depend on it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(arrays)  # noqa: NPY002
        random.setstate(python)


@functools.cache
def _code_version() -> str:
    """A digest of the files of this folder that decide the outcome of a training."""
    folder = resources.files("mirepoix") / "rewards" / "control"
    digest = hashlib.sha256()
    for name in ("_locomotion.py", "_normaliser.py", "_policy.py", "_train.py", "_wrappers.py"):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]
