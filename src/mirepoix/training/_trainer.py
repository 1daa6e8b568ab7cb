"""The loop: one fine-tuning in plain torch, which continues after an interruption with the same bits.

Everything random at step ``t`` is seeded by (run, what it is for, ``t``), so the state of a run is its
weights, its optimizer, its collectors and ``t``: no generator has to be saved, and evaluating more often
changes nothing.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from mirepoix.checkpoints import fingerprint
from mirepoix.data import Split, Subset, draw, evaluation_batches, prefetch, split_indices
from mirepoix.models import Network, NetworkSpec, part_before
from mirepoix.objectives import ERM, Objective
from mirepoix.predictions import predict
from mirepoix.runs import COLLECTED, Run
from mirepoix.seeds import generator, seed_hash
from mirepoix.training._collectors import Best, Check, Collector, Last, UniformAverage
from mirepoix.training._device import choose_device
from mirepoix.training._ema import ExponentialAverage
from mirepoix.training._interruption import load_state, save_state
from mirepoix.training._snapshots import Snapshots
from mirepoix.training._swad import SWAD, ReleasedSWAD
from mirepoix.types import Batch, Diverged, InputError, Outputs, Weights

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
        record: How it went: checks (with the means of the loss and of its terms since the one before), best step,
            seconds, device.
        objective: The criterion as it was after the last step, in evaluation mode. A few predict with parts of their
            own that are not among the weights: see `Objective.predict`.
    """

    weights: Mapping[str, Weights]
    record: dict[str, Any]
    objective: Objective


@dataclass(frozen=True)
class Trainer:
    """``Train(theta, D; c)``: fine-tunes one network on the source domains of a split.

    Deterministic given its arguments on one kind of device.

    Attributes:
        network: What to build for every run; the run says its dropout.
        objective: The training criterion, copied for every run.
        loop: Device, precision, layout.
        keep: Collectors whose weights every training gives, beside the one that ``run.collect`` names.
        watch_left_out: Evaluate the left-out domains at every check too, for the record alone: nothing that is kept
            depends on it. The published benchmark chooses by such records.
        on_progress: Called after every update.
    """

    network: NetworkSpec
    objective: Objective = field(default_factory=ERM)
    loop: Loop = field(default_factory=Loop)
    keep: Sequence[str] = ("best", "last", "moving_average")
    watch_left_out: bool = False
    on_progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in self.keep:
            if name not in COLLECTED:
                raise InputError(f"keep: expected some of {', '.join(COLLECTED)}, got {name!r}.")

    def _check(self, run: Run) -> None:
        """Refuse what is no objective, and warn of one that begins after the last update."""
        if not isinstance(self.objective, Objective):
            raise InputError(
                f"objective: expected an objective such as ERM(), got {self.objective!r}; "
                "mirepoix.objectives.objective(name, ...) makes one by name."
            )
        begins = self.objective.begins()
        if begins >= run.steps:
            warnings.warn(
                f"{type(self.objective).__name__} begins at update {begins:,}, and the run has {run.steps:,} steps: it "
                "will never be what it is called. Make it begin earlier, or train longer.",
                stacklevel=3,
            )

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
            "keep": sorted(set(self.keep)),
            "watch_left_out": self.watch_left_out,
        }

    def __call__(self, theta: Weights, task: Split, run: Run, /) -> Weights:
        """The weights that ``run.collect`` names."""
        return self.fit(theta, task, run).weights[run.collect]

    def fit(self, theta: Weights, split: Split, run: Run, *, workspace: Path | None = None) -> Fit:
        """Train, and return the weights of every collector that is kept.

        Args:
            theta: Where to start: weights of the whole network.
            split: The source domains; only their training and validation parts are read.
            run: The configuration.
            workspace: Folder for the state of the unfinished run, made if it is not there. A second call with the
                same arguments and folder continues there.

        Raises:
            Diverged: If the loss is not a finite number any more.
            InputError: If the objective cannot be used with this network, split or run.
        """
        self._check(run)
        return _Fitting(self, theta, split, run, workspace).run_to_end()

    def rehearse(self, theta: Weights, split: Split, run: Run) -> None:
        """Make one update and throw it away: what cannot be trained is told before anything long.

        Raises:
            InputError: If the objective cannot be used with this network, split or run.
        """
        self._check(run)
        _Fitting(self, theta, split, run, None).rehearse()


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
        _load(self.model, theta, trainer.network)
        self.model.to(self.device).to(memory_format=self.layout)
        self.forward: Any = torch.compile(self.model) if loop.compile else self.model
        self.objective = copy.deepcopy(trainer.objective).to(self.device)
        self.frozen = part_before(self.model, trainer.network, run.train_from) if run.train_from else None
        self.predictor = _Predictor(self.model, self.objective)
        self.theta = self.model.state_dict()  # live: the tensors change with every update
        self.best = Best()  # its check is always recorded
        self.collectors: dict[str, Collector] = {"best": self.best}
        for name in sorted({*trainer.keep, run.collect} - {"best"}):
            self.collectors[name] = _collector(name, run)
        self.kept = {*trainer.keep, run.collect}
        self.watched = split.left_out if trainer.watch_left_out else ()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loop.mixed_precision == "fp16")
        self.step = 0
        self.seconds = 0.0
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_count = 0
        self.term_sums: dict[str, torch.Tensor] = {}
        self.checks: list[dict[str, Any]] = []
        self.state_file = workspace / "state.bin" if workspace else None
        if workspace:
            workspace.mkdir(parents=True, exist_ok=True)
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
        if self.frozen is not None:
            self.frozen.requires_grad_(False)
        every = (*self.model.parameters(), *self.objective.trained_with_network())
        parameters = [parameter for parameter in every if parameter.requires_grad]
        if run.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                run.learning_rate,
                momentum=run.momentum,
                weight_decay=run.weight_decay,
                nesterov=run.nesterov,
            )
        kind = torch.optim.Adam if run.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, run.learning_rate, weight_decay=run.weight_decay)

    def training_mode(self) -> None:
        self.model.train()
        self.objective.train()
        if self.trains_classifier_only():
            self.model.featurizer.eval()  # its batch-norm statistics must not move either
        if self.frozen is not None and self.run.frozen_statistics:
            self.frozen.eval()

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
                    group["lr"] = run.learning_rate_at(self.step)
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
        assert self.best.check is not None  # the last step is always checked
        record = {
            "status": "finished",
            "id_accuracy": self.best.check.score,
            "best_step": self.best.check.step,
            "checks": self.checks,
            "seconds": round(self.seconds, 3),
            "device": str(self.device),
        }
        weights = {}
        for name, collector in self.collectors.items():
            if name not in self.kept:
                continue
            with warnings.catch_warnings():
                if name != run.collect:  # nobody asked for these yet; the record says what they are
                    warnings.filterwarnings("ignore", message="SWAD found no start")
                weights[name] = collector.weights(self.theta)
            if isinstance(collector, SWAD | ReleasedSWAD):
                record[name] = {
                    "window": [list(segment) for segment in collector.window],
                    "threshold": collector.threshold,
                    "ended": collector.ended,
                }
        return Fit(weights, record, self.objective.eval())

    def rehearse(self) -> None:
        """The first update."""
        with _deterministic(self.device):
            self.training_mode()
            self.update(self.batches(0))

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
        for name, value in logged.items():
            if name != "loss":
                self.term_sums[name] = self.term_sums.get(name, 0) + value

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
        """Evaluate on the validation part of every source domain, un-augmented unless the run says so."""
        accuracies, losses = {}, []
        for subset in self.split.validation:
            logits, labels = self.evaluated(subset)
            accuracies[subset.name] = (logits.argmax(1) == labels).double().mean().item()
            losses.append(F.cross_entropy(logits.double(), labels).item())
        watched = {subset.name: self.parts(subset) for subset in self.watched}
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
        terms = {name: value.item() / self.loss_count for name, value in self.term_sums.items()}
        entry = {**asdict(check), "train_loss": train_loss, **({"train_terms": terms} if terms else {})}
        self.checks.append({**entry, "left_out": watched} if watched else entry)
        self.loss_sum.zero_()
        self.loss_count = 0
        self.term_sums = {}
        for collector in self.collectors.values():
            collector.after_check(check, self.theta)

    def evaluated(self, subset: Subset) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of one subset."""
        transform = self.split.task.transform
        augmented = None
        if self.run.augment_validation:
            augmented = generator("augment validation", self.run.seed, self.step, subset.name)
        batches = evaluation_batches(subset, transform, device=self.device, augmented=augmented)
        return predict(self.predictor, batches), torch.as_tensor(subset.labels)

    def parts(self, subset: Subset) -> dict[str, float]:
        """Accuracy on the two parts of a left-out domain, as the benchmark divides it; for the record alone."""
        batches = evaluation_batches(subset, self.split.task.transform, device=self.device)
        correct = (predict(self.predictor, batches).argmax(1) == torch.as_tensor(subset.labels)).double()
        train, validation = split_indices(
            len(subset), data_seed=self.split.data_seed, domain=subset.number, holdout=self.split.holdout
        )
        return {"train": correct[train].mean().item(), "validation": correct[validation].mean().item()}

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
                "terms": self.term_sums,
            },
        )

    def resume(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        self.step, self.seconds, self.checks = state["step"], state["seconds"], state["checks"]
        self.loss_sum, self.loss_count = state["loss"][0].to(self.device), state["loss"][1]
        self.term_sums = {name: value.to(self.device) for name, value in state.get("terms", {}).items()}
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


def _load(model: Network, theta: Weights, network: NetworkSpec) -> None:
    """Give a network its start.

    Raises:
        InputError: If these are weights of another network.
    """
    expected, given = (
        {k: v.shape for k, v in model.state_dict().items()},
        {k: v.shape for k, v in theta.items()},
    )
    if expected != given:
        wrong = sorted(
            name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
        )
        several = network.members > 1 or network.inputs > 1
        advice = (
            "mirepoix.models.branch_weights or multi_input_weights make them from those of plain networks"
            if several
            else "mirepoix.models.load_pretrained fits a file to a network, member_weights takes one member of several"
        )
        raise InputError(
            f"theta: expected weights of {network.name}{' with several members' if several else ''}, got others: "
            f"{len(wrong)} names or shapes differ, such as {wrong[0]!r}; {advice}."
        )
    model.load_state_dict(dict(theta))


class _Predictor(torch.nn.Module):
    """A network, together with what its criterion adds to predictions."""

    def __init__(self, model: Network, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: torch.Tensor) -> Outputs:
        return self.objective.predict(self.model, images)


def _collector(name: str, run: Run) -> Collector:
    """What `Run.collect` calls by this name, with the options of the run."""
    swad = (run.swad_start_patience, run.swad_end_patience, run.swad_tolerance)
    match name:
        case "last":
            return Last()
        case "moving_average":
            return UniformAverage(run.average_from)
        case "ema":
            return ExponentialAverage(run.ema_decay)
        case "swad":
            return SWAD(*swad)
        case "swad_released":
            return ReleasedSWAD(*swad)
        case _:
            return Snapshots()


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
