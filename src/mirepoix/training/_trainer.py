"""The loop: one fine-tuning in plain torch, which continues after an interruption with the same bits.

Everything random at step ``t`` is seeded by (run, what it is for, ``t``), so the state of a run is its
weights, its optimizer, its collectors and ``t``: no generator has to be saved, and evaluating more often
changes nothing.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from mirepoix.checkpoints import fingerprint
from mirepoix.data import Split, draw, evaluation_batches, prefetch
from mirepoix.models import Network, NetworkSpec
from mirepoix.objectives import ERM, Objective
from mirepoix.predictions import predict
from mirepoix.runs import Run
from mirepoix.seeds import seed_hash
from mirepoix.training._collectors import Best, Check, Collector, Last, UniformAverage
from mirepoix.training._device import choose_device
from mirepoix.training._interruption import load_state, save_state
from mirepoix.types import Batch, Diverged, InputError, Weights

__all__ = ["Fit", "Loop", "Progress", "Trainer"]

Progress = Callable[[int, int, float, float | None], None]
"""Called with the updates made, the updates of the run, the loss, and the latest ID accuracy."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Options of the loop that are not part of a run's configuration.

    Attributes:
        device: ``auto`` takes the accelerator when there is one.
        mixed_precision: ``bf16`` or ``fp16`` (with loss scaling) for the forward pass; ``none`` by default, as
            in the published numbers.
        channels_last: Memory layout that convolutions on a GPU like better.
        compile: Compile the network with ``torch.compile``.
        save_every: Seconds between two saves of the state of an unfinished run.
    """

    device: str = "auto"
    mixed_precision: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = False
    compile: bool = False
    save_every: float = 30.0

    def numerics(self) -> dict[str, Any]:
        """The options that can change the bits of a result."""
        return {
            "mixed_precision": self.mixed_precision,
            "channels_last": self.channels_last,
            "compile": self.compile,
        }


@dataclass(frozen=True)
class Fit:
    """What one training gives.

    Attributes:
        weights: From the name of a collector (``best``, ``last``, ``moving_average``) to its weights.
        record: How it went: checks, best step, seconds, device.
    """

    weights: Mapping[str, Weights]
    record: dict[str, Any]


@dataclass(frozen=True)
class Trainer:
    """``Train(theta, D; c)``: fine-tunes one network on the source domains of a split.

    Deterministic given its arguments on one kind of device.

    Attributes:
        network: What to build for every run; the run says its dropout.
        objective: The training criterion, copied for every run.
        loop: Device, precision, layout.
        on_progress: Called after every update.
    """

    network: NetworkSpec
    objective: Objective = field(default_factory=ERM)
    loop: Loop = field(default_factory=Loop)
    on_progress: Progress | None = field(default=None, compare=False)

    def made_of(self) -> dict[str, Any]:
        """What the trainer adds to the identity of its results."""
        return {
            "network": self.network.to_dict(),
            "objective": {
                "name": f"{type(self.objective).__module__}.{type(self.objective).__qualname__}",
                "state": fingerprint(self.objective.state_dict()),
                **self.objective.configuration(),
            },
            "loop": self.loop.numerics(),
        }

    def __call__(self, theta: Weights, task: Split, run: Run, /) -> Weights:
        """The weights that ``run.collect`` names."""
        return self.fit(theta, task, run).weights[run.collect]

    def fit(self, theta: Weights, split: Split, run: Run, *, workspace: Path | None = None) -> Fit:
        """Train, and return the weights of every collector.

        Args:
            theta: Where to start: weights of the whole network.
            split: The source domains; only their training and validation parts are read.
            run: The configuration.
            workspace: Folder for the state of the unfinished run. A second call with the same arguments and
                folder continues there.

        Raises:
            Diverged: If the loss is not a finite number any more.
        """
        return _Fitting(self, theta, split, run, workspace).run_to_end()


class _Fitting:
    """One training under way."""

    def __init__(
        self, trainer: Trainer, theta: Weights, split: Split, run: Run, workspace: Path | None
    ) -> None:
        if not split.train:
            raise InputError("training needs at least one source domain, got none.")
        loop = trainer.loop
        self.run, self.split, self.loop, self.progress = run, split, loop, trainer.on_progress
        self.device = choose_device(loop.device)
        self.layout = torch.channels_last if loop.channels_last else torch.preserve_format
        self.model: Network = trainer.network.build(dropout=run.dropout)
        self.model.load_state_dict(dict(theta))
        self.model.to(self.device).to(memory_format=self.layout)
        self.forward: Any = torch.compile(self.model) if loop.compile else self.model
        self.objective = copy.deepcopy(trainer.objective).to(self.device)
        self.theta = self.model.state_dict()  # live: the tensors change with every update
        self.collectors: dict[str, Collector] = {
            "best": Best(),
            "last": Last(),
            "moving_average": UniformAverage(run.average_from),
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loop.mixed_precision == "fp16")
        self.step = 0
        self.seconds = 0.0
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_count = 0
        self.checks: list[dict[str, Any]] = []
        self.state_file = workspace / "state.bin" if workspace else None
        self.optimizer = self.new_optimizer()
        if self.state_file:
            self.resume(load_state(self.state_file))

    # The optimizer ------------------------------------------------------------------------------------------

    def trains_classifier_only(self) -> bool:
        return self.step < self.run.classifier_steps

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Adam, AdamW or SGD over what is trained from this step on."""
        run = self.run
        self.model.featurizer.requires_grad_(not self.trains_classifier_only())
        parameters = [p for p in (*self.model.parameters(), *self.objective.parameters()) if p.requires_grad]
        if run.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, run.learning_rate, momentum=run.momentum, weight_decay=run.weight_decay
            )
        kind = torch.optim.Adam if run.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, run.learning_rate, weight_decay=run.weight_decay)

    def learning_rate(self) -> float:
        run = self.run
        if run.schedule == "constant":
            return run.learning_rate
        return run.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / run.steps))

    def training_mode(self) -> None:
        self.model.train()
        self.objective.train()
        if self.trains_classifier_only():
            self.model.featurizer.eval()  # its batch-norm statistics must not move either

    # The loop -----------------------------------------------------------------------------------------------

    def run_to_end(self) -> Fit:
        run = self.run
        steps = range(self.step, run.steps)
        started = saved = time.monotonic()
        with _deterministic(self.device), closing(prefetch(self.batches, steps)) as upcoming:
            self.training_mode()
            for batches in upcoming:
                if self.step == run.classifier_steps and self.step > 0:
                    self.optimizer = self.new_optimizer()
                    self.training_mode()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate()
                self.update(batches)
                check_due = self.step % run.check_every == 0 or self.step == run.steps - 1
                self.watch_loss(check_due)
                self.step += 1
                for collector in self.collectors.values():
                    collector.after_step(self.step, self.theta)
                if check_due:
                    self.check()
                if self.state_file and time.monotonic() - saved > self.loop.save_every:
                    self.save(self.seconds + time.monotonic() - started)
                    saved = time.monotonic()
        self.seconds += time.monotonic() - started
        best = self.collectors["best"]
        assert isinstance(best, Best)
        assert best.check is not None  # the last step is always checked
        record = {
            "status": "finished",
            "id_accuracy": best.check.score,
            "best_step": best.check.step,
            "checks": self.checks,
            "seconds": round(self.seconds, 3),
            "device": str(self.device),
        }
        return Fit(
            {name: collector.weights(self.theta) for name, collector in self.collectors.items()}, record
        )

    def batches(self, step: int) -> list[Batch]:
        run = self.run
        drawn = draw(
            self.split,
            step,
            batch_size=run.batch_size,
            seed=run.seed,
            augment=run.augment,
            device=self.device,
        )
        if not self.loop.channels_last:
            return drawn
        return [Batch(b.images.contiguous(memory_format=self.layout), b.labels, b.domains) for b in drawn]

    def update(self, batches: Sequence[Batch]) -> None:
        """One step of the objective, with the dropout of this step."""
        _seed(self.device, seed_hash(self.run.seed, "dropout", self.step))
        with _autocast(self.device, self.loop.mixed_precision):
            logged = self.objective.step(self.forward, batches, self.optimizer, self.scaler)
        self.loss_sum += logged["loss"]
        self.loss_count += 1

    def watch_loss(self, check_due: bool) -> None:
        """Stop on a loss that is not finite; seldom on an accelerator, where looking means waiting."""
        if not (check_due or self.device.type == "cpu" or self.step % 10 == 9):
            return
        total = self.loss_sum.item()
        if not math.isfinite(total):
            raise Diverged(
                f"the loss was {total} by step {self.step} of {self.run.steps} "
                f"(learning rate {self.run.learning_rate:g}); a smaller learning rate helps.",
                self.step,
            )
        if self.progress:
            accuracy = self.checks[-1]["score"] if self.checks else None
            self.progress(self.step + 1, self.run.steps, total / max(self.loss_count, 1), accuracy)

    def check(self) -> None:
        """Evaluate on the un-augmented validation part of every source domain."""
        accuracies, losses = {}, []
        for subset in self.split.validation:
            batches = evaluation_batches(subset, self.split.task.transform, device=self.device)
            logits = predict(self.model, batches)
            labels = torch.as_tensor(subset.labels)
            accuracies[subset.name] = (logits.argmax(1) == labels).double().mean().item()
            losses.append(F.cross_entropy(logits.double(), labels).item())
        self.training_mode()
        score, loss = sum(accuracies.values()) / len(accuracies), sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise Diverged(
                f"the validation loss was {loss} after step {self.step - 1} of {self.run.steps} "
                f"(learning rate {self.run.learning_rate:g}); a smaller learning rate helps.",
                self.step - 1,
            )
        check = Check(self.step - 1, score, loss, accuracies)
        train_loss = self.loss_sum.item() / max(self.loss_count, 1)
        self.checks.append({**asdict(check), "train_loss": train_loss})
        self.loss_sum.zero_()
        self.loss_count = 0
        for collector in self.collectors.values():
            collector.after_check(check, self.theta)

    # Interruption -------------------------------------------------------------------------------------------

    def save(self, seconds: float) -> None:
        assert self.state_file is not None
        save_state(
            self.state_file,
            {
                "step": self.step,
                "seconds": seconds,
                "theta": self.theta,
                "optimizer": self.optimizer.state_dict(),
                "objective": self.objective.state_dict(),
                "scaler": self.scaler.state_dict(),
                "collectors": {name: collector.state() for name, collector in self.collectors.items()},
                "checks": self.checks,
                "loss": (self.loss_sum, self.loss_count),
            },
        )

    def resume(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        self.step, self.seconds, self.checks = state["step"], state["seconds"], state["checks"]
        self.loss_sum, self.loss_count = state["loss"][0].to(self.device), state["loss"][1]
        self.model.load_state_dict(state["theta"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        # The optimizer saved is the one of the last step made.
        step, self.step = self.step, self.step - 1
        self.optimizer = self.new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = step
        for name, collector in self.collectors.items():
            collector.load(state["collectors"][name])


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Choose deterministic kernels, and give the global generators back as they were."""
    devices = [device] if device.type != "cpu" else []
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


def _seed(device: torch.device, seed: int) -> None:
    """Seed the global generators in use; `torch.manual_seed` would note a stack trace for each absent device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # else the first device would be seeded
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "none")
