"""``Train(theta, task; run)`` for language models: reinforcement learning of a LoRA adapter by TRL.

The reward of a completion is a weighted sum, so an expert and a MORL run differ in the weights alone. The adapter
begins at zero change with the same :math:`A` for all experts, the start is the reference of the KL penalty, and what
is kept of a training is its adapter.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mirepoix.checkpoints import Checkpoint, fingerprint, read_json, write_json
from mirepoix.merging import LoraAdapter
from mirepoix.rewards._normalise import Normaliser, none, zscore
from mirepoix.rewards.text._adapters import AdaptedWeights
from mirepoix.rewards.text._generate import TextModel, write_
from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.rewards.text._rewards import Reward
from mirepoix.rewards.text._start import TextStart
from mirepoix.rewards.text._task import TextTask
from mirepoix.seeds import generator
from mirepoix.store import Store
from mirepoix.types import Diverged, InputError, Weights

__all__ = ["FAR", "NEAR", "TextExpert", "TextRun", "TextTrainer"]

ALGORITHMS = ("rloo", "grpo")
NORMALISATIONS = ("zscore", "none")
LIBRARIES = ("accelerate", "datasets", "peft", "tokenizers", "transformers", "trl")

OURS = (
    "beta",
    "disable_tqdm",
    "learning_rate",
    "logging_steps",
    "max_completion_length",
    "max_steps",
    "num_generations",
    "output_dir",
    "per_device_train_batch_size",
    "report_to",
    "reward_weights",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "seed",
    "temperature",
    "use_cpu",
)
"""Settings of TRL that `TextRun.options` may not change."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps done, the steps of the run, and the mean of each reward in the step."""


@dataclass(frozen=True, kw_only=True)
class TextRun:
    r"""The configuration of one training; the defaults suit models as small as `tiny_start`'s.

    Attributes:
        seed: Of the order of the prompts and of the completions.
        steps: Updates.
        algorithm: ``rloo``, without a critic and close to PPO; or ``grpo``.
        beta: Of the KL penalty. RLOO subtracts :math:`\beta \sum_t \log (\pi / \pi_{init})` of the whole completion
            from the reward; GRPO adds :math:`\beta` times the mean KL of the tokens to the loss.
        completions: Drawn for each prompt, at least 2; they divide ``batch_size``.
        batch_size: Completions of an update, times ``gradient_accumulation_steps`` if ``options`` set it.
        learning_rate: Of AdamW, constant.
        max_tokens: The most tokens of a completion.
        temperature: Of the draws.
        rank: Of the adapter.
        alpha: Its change is :math:`(\alpha / r) B A`.
        targets: Layers that are adapted: ``all-linear`` is all but the output, or the ends of their names.
        adapter_seed: Of the first :math:`A`, the same for all experts of a soup.
        normalise: ``zscore`` divides each reward by its standard deviation over samples of the start, after their mean
            is taken away; ``none`` takes rewards as they are. It is the same for one reward and for a sum, so that the
            KL penalty weighs alike for experts and MORL.
        samples: Completions of the start on training prompts, from which these constants are estimated.
        snapshots: Steps between two adapters that are kept along the way; none by default.
        options: More settings of TRL's trainer, by their names there, such as ``gradient_accumulation_steps``.

    References:
        Ahmadian et al. (2024), Back to basics: revisiting REINFORCE-style optimization (RLOO); Shao et al. (2024),
        DeepSeekMath (GRPO).
    """

    seed: int = 0
    steps: int = 80
    algorithm: Literal["rloo", "grpo"] = "rloo"
    beta: float = 0.1
    completions: int = 8
    batch_size: int = 64
    learning_rate: float = 1e-3
    max_tokens: int = 20
    temperature: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"
    adapter_seed: int = 0
    normalise: Literal["zscore", "none"] = "zscore"
    samples: int = 256
    snapshots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def expect(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"run.{name}: expected {expected}, got {getattr(self, name)!r}.")

        expect(self.steps >= 1, "steps", "at least 1")
        expect(self.algorithm in ALGORITHMS, "algorithm", f"one of {', '.join(ALGORITHMS)}")
        expect(math.isfinite(self.beta) and self.beta >= 0, "beta", "0 or more")
        expect(self.completions >= 2, "completions", "at least 2, of which one is the baseline of the other")
        expect(
            self.batch_size >= 1 and self.batch_size % self.completions == 0,
            "batch_size",
            f"a multiple of completions ({self.completions})",
        )
        for name in ("learning_rate", "temperature", "alpha"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value > 0, name, "a positive number")
        for name in ("max_tokens", "rank"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        expect(self.normalise in NORMALISATIONS, "normalise", f"one of {', '.join(NORMALISATIONS)}")
        expect(self.samples >= 2, "samples", "at least 2")
        expect(self.snapshots is None or self.snapshots >= 1, "snapshots", "at least 1 step, or None")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    def with_(self, **changes: Any) -> TextRun:
        """The same run with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record."""
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return {**dataclasses.asdict(self), "targets": targets, "options": dict(self.options)}


NEAR = TextRun(beta=0.3, steps=60, normalise="zscore")
"""For the tiny model: experts that stay near the start, so that no soup lies below the chord of their rewards."""

FAR = TextRun(beta=0.03, steps=100, learning_rate=5e-3, normalise="none")
"""For the tiny model: experts far from the start, where soups earn less than the average of the experts."""


class TextExpert(AdaptedWeights):
    """The weights that a training reached, with what was kept along the way.

    Attributes:
        snapshots: From the number of steps done to the weights then, if the run asks for them.
    """

    snapshots: Mapping[int, AdaptedWeights] = {}


@dataclass(frozen=True, kw_only=True)
class TextTrainer:
    r"""``Train(theta, D; c)`` with the reward :math:`\sum_k \mu_k R_k`: an expert, or a MORL run.

    Deterministic given its arguments, on one kind of device and one number of threads.

    Attributes:
        start: The network and its tokenizer.
        reward: From the name of a reward to its coefficient :math:`\mu_k`, used as given; those not named count 0.
            ``{"sentiment": 1}`` trains an expert.
        store: Where results are kept, by what they were made of. A training that was killed continues there.
        device: Such as ``cuda``; by default the GPU if there is one, else the CPU.
        checkpoint_every: Steps between two states that are saved, if there is a store.
        on_progress: Called after each step.

    Example:
        >>> expert = TextTrainer(start=start, reward={"sentiment": 1.0})  # doctest: +SKIP
        >>> compromise = TextTrainer(start=start, reward={"sentiment": 0.5, "length": 0.5})  # doctest: +SKIP
    """

    start: TextStart
    reward: Mapping[str, float]
    store: Store | None = None
    device: str | None = None
    checkpoint_every: int = 25
    on_progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every: expected at least 1 step, got {self.checkpoint_every}.")

    def made_of(self) -> dict[str, Any]:
        """What the trainer adds to the identity of its results."""
        return {
            "name": "text",
            "reward": {name: float(share) for name, share in sorted(self.reward.items()) if share},
            "start": {part: value for part, value in self.start.identity.items() if part != "weights"},
            "code": _code_version(),
        }

    def __call__(self, theta: Weights, task: TextTask, run: TextRun, /) -> TextExpert:
        """The weights reached from ``theta``, in the network of the start.

        Args:
            theta: Where to start, usually ``start.weights``.
            task: Prompts and rewards.
            run: The configuration.

        Raises:
            Diverged: If the loss or a weight is not finite any more.
            InputError: If a reward is not the task's, or returns what is no reward; if theta does not fit the network.
        """
        task.shares(self.reward)
        found = self.start.fingerprint if theta is self.start.weights else fingerprint(theta)
        identity = {"theta": found, "task": task.digest, "run": run.to_dict(), "train": self.made_of()}

        def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
            fitting = _Fitting(self, theta, task, run, workspace)
            try:
                return fitting.run_to_end()
            except Diverged as diverged:
                return {}, {"status": "diverged", "step": diverged.step, "message": str(diverged)}

        if self.store is None:
            made, record = make(None)
            weights: Mapping[str, Weights] = made
        else:
            weights, record = self.store.get_or_make("text-experts", identity, make)
        if record["status"] == "diverged":
            raise Diverged(record["message"], record["step"])
        record = {**record, "start": {**self.start.identity, "weights": found}}
        shares = self.made_of()["reward"]
        label = "+".join(name if share == 1 else f"{share:g}*{name}" for name, share in shares.items())
        tensors = weights["adapter_model"]
        if isinstance(tensors, Checkpoint):
            _put_settings(tensors.path.parent, record["adapter"])
        adapter = LoraAdapter(record["adapter"], tensors, label)
        expert = TextExpert(theta, {label: adapter}, record=record)
        expert.snapshots = {
            int(name.removeprefix("step-")): AdaptedWeights(
                theta, {label: LoraAdapter(record["adapter"], kept, name)}, record=record
            )
            for name, kept in sorted(weights.items())
            if name.startswith("step-")
        }
        return expert

    def normaliser(self, theta: Weights, task: TextTask, run: TextRun) -> Normaliser:
        """The z-score of each reward, fitted on samples of ``theta`` on training prompts.

        It depends on the run's ``samples``, ``max_tokens`` and ``temperature`` alone, so all experts of a soup and
        their MORL runs share it. It is kept in the store and in the record of every training that uses it. A reward
        that is the same for all samples has none.

        Raises:
            InputError: If a reward that is trained on is the same for all samples.
        """
        found = self.start.fingerprint if theta is self.start.weights else fingerprint(theta)
        options = {"samples": run.samples, "max_tokens": run.max_tokens, "temperature": run.temperature}
        identity = {"theta": found, "task": task.digest, "options": options, "start": self.made_of()["start"]}

        def make(workspace: Path | None) -> tuple[dict[str, Weights], dict[str, Any]]:
            model = TextModel(self.start, device=self.device)
            if theta is not self.start.weights:
                model.write_(theta)
            places = [place % len(task.prompts) for place in range(run.samples)]
            prompts = [task.prompts[place] for place in places]
            texts = model.complete(prompts, max_tokens=run.max_tokens, temperature=run.temperature)
            columns = {name: [values[place] for place in places] for name, values in task.columns.items()}
            samples = {reward.name: reward(prompts, texts, **columns) for reward in task.rewards}
            varying = {name: values for name, values in samples.items() if len(set(values)) > 1}
            fitted = zscore(varying) if varying else Normaliser("zscore", {}, {})
            return {}, {"normaliser": fitted.to_dict()}

        _, record = (
            make(None) if self.store is None else self.store.get_or_make("text-normalisers", identity, make)
        )
        fitted = Normaliser.from_dict(record["normaliser"])
        for name, share in self.reward.items():
            if share and name not in fitted.rewards:
                raise InputError(
                    f"reward {name!r}: is the same for all {run.samples} samples of the start, so it has no scale. "
                    "Pass normalise='none', or more samples."
                )
        return fitted


class _Fitting:
    """One training under way."""

    def __init__(
        self, trainer: TextTrainer, theta: Weights, task: TextTask, run: TextRun, workspace: Path | None
    ) -> None:
        self.trainer, self.theta, self.task, self.run = trainer, theta, task, run
        self.state = None if workspace is None else workspace / "state.bin"
        shares = task.shares(trainer.reward)
        several = sum(share != 0 for share in shares) > 1
        scaled = run.normalise == "zscore"
        self.normaliser = trainer.normaliser(theta, task, run) if scaled else none(task.names)
        self.shares, self.several = shares, several
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.started, self.before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Of the training, those before it was interrupted included."""
        return self.before + time.perf_counter() - self.started

    def run_to_end(self) -> tuple[dict[str, Weights], dict[str, Any]]:
        """The adapter's tensors by name, and the record."""
        with tempfile.TemporaryDirectory(prefix="mirepoix-") as folder, quiet():
            place = Path(folder)
            trainer = self._trainer(place)
            resumed = self._unpacked(place)
            try:
                trainer.train(resume_from_checkpoint=resumed)
            except RuntimeError as error:
                self._explain(error, trainer)
                raise
            model = trainer.accelerator.unwrap_model(trainer.model)
            tensors = self._tensors(model)
            config = self._config(model, place)
            history = list(trainer.state.log_history)
        record = {
            "status": "finished",
            "adapter": config,
            "normaliser": self.normaliser.to_dict(),
            "history": self._history(history),
            "generation": self._generation(),
            "seconds": round(self.seconds, 2),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        }
        return {"adapter_model": tensors, **self.snapshots}, record

    def _trainer(self, place: Path) -> Any:
        import torch

        peft, trl, datasets = library("peft"), library("trl"), library("datasets")
        run, trainer = self.run, self.trainer
        device = trainer.device or ("cuda" if torch.cuda.is_available() else "cpu")
        network = trainer.start.model()
        if self.theta is not trainer.start.weights:
            write_(network, self.theta, trainer.start, set())
        several = {"multi_objective_aggregation": "normalize_then_sum"} if self.several else {}
        settings = {
            "output_dir": str(place),
            "use_cpu": device == "cpu",
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": device != "cpu",
            "per_device_train_batch_size": run.batch_size,
            "num_generations": run.completions,
            "max_completion_length": run.max_tokens,
            "temperature": run.temperature,
            "learning_rate": run.learning_rate,
            "lr_scheduler_type": "constant",
            "beta": run.beta,
            "max_steps": run.steps,
            "seed": run.seed,
            "logging_steps": 1,
            "reward_weights": list(self.shares),
            "save_strategy": "no" if self.state is None else "steps",
            "save_steps": trainer.checkpoint_every,
            "save_total_limit": 1,
            **(several if run.algorithm == "grpo" else {}),
            **run.options,
        }
        kind, config = (
            (trl.RLOOTrainer, trl.RLOOConfig)
            if run.algorithm == "rloo"
            else (trl.GRPOTrainer, trl.GRPOConfig)
        )
        targets = run.targets if isinstance(run.targets, str) else list(run.targets)
        taken = next((name for name in run.options if name in OURS), None)
        if taken is not None:
            raise InputError(f"run.options: {taken!r} follows from the run or the trainer. Set it there.")
        fields = {item.name for item in dataclasses.fields(config)}
        unknown = [name for name in run.options if name not in fields]
        if unknown:
            raise InputError(f"run.options: TRL's {config.__name__} has no {unknown[0]!r}.")
        made = _quiet_class(kind, self)(
            model=network,
            reward_funcs=[self._function(reward) for reward in self.task.rewards],
            args=config(**settings),
            train_dataset=datasets.Dataset.from_dict(
                {"prompt": list(self.task.prompts), **self.task.columns}
            ),
            processing_class=trainer.start.tokenizer,
            peft_config=peft.LoraConfig(
                r=run.rank,
                lora_alpha=run.alpha,
                target_modules=targets,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            ),
        )
        made.remove_callback(library("transformers").PrinterCallback)
        _start_adapter(made.model, run.adapter_seed)
        if not any(parameter.requires_grad for parameter in made.model.parameters()):
            raise InputError(f"run.targets: {run.targets!r} leaves nothing to train.")
        return made

    def _function(self, reward: Reward) -> Callable[..., list[float]]:
        """The reward as TRL calls it: by keywords, among which are some of its own."""
        offset, scale = self._scale(reward.name)

        def function(
            prompts: Sequence[str],
            completions: Sequence[str],
            completion_ids: Any = None,
            trainer_state: Any = None,
            log_extra: Any = None,
            log_metric: Any = None,
            **columns: Any,
        ) -> list[float]:
            return [(value - offset) / scale for value in reward(prompts, completions, **columns)]

        function.__name__ = reward.name
        return function

    def after_step(self, step: int, logs: Mapping[str, Any], model: Any) -> None:
        """Look at one step: its loss, its rewards, and whether its adapter is to be kept."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise Diverged(f"the loss is {logs['loss']} after {step} steps.", step - 1)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        if not all(bool(parameter.isfinite().all()) for parameter in trained):
            raise Diverged(f"the adapter is not finite after {step} steps.", step - 1)
        every = self.run.snapshots
        if every and step % every == 0 and step < self.run.steps:
            self.snapshots[f"step-{step:06d}"] = self._tensors(model)
        if self.trainer.on_progress is not None:
            row = self._row(logs)
            self.trainer.on_progress(step, self.run.steps, {name: row[name] for name in self.task.names})

    def _explain(self, error: RuntimeError, trainer: Any) -> None:
        """Drawing tokens fails where probabilities are not finite: then the training has diverged."""
        import torch

        if isinstance(error, Diverged):
            return
        ids = self.trainer.start.tokenizer(self.task.prompts[0], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = trainer.model(input_ids=ids.to(trainer.model.device)).logits
        if not bool(logits.isfinite().all()):
            step = trainer.state.global_step
            raise Diverged(f"probabilities of tokens are not finite after {step} steps.", step - 1) from error

    def save(self, folder: Path, step: int) -> None:
        """Pack a checkpoint of TRL into one file that is whole or absent."""
        from mirepoix.training._interruption import save_state

        assert self.state is not None
        files = {file.name: _packed(file.read_bytes()) for file in sorted(folder.iterdir()) if file.is_file()}
        save_state(
            self.state,
            {"step": step, "files": files, "snapshots": self.snapshots, "seconds": self.seconds},
        )
        shutil.rmtree(folder)

    def _unpacked(self, place: Path) -> str | None:
        from mirepoix.training._interruption import load_state

        state = None if self.state is None else load_state(self.state)
        if state is None:
            return None
        folder = place / f"checkpoint-{state['step']}"
        folder.mkdir()
        for name, content in state["files"].items():
            (folder / name).write_bytes(content.numpy().tobytes())
        self.snapshots = state["snapshots"]
        self.before, self.started = state["seconds"], time.perf_counter()
        return str(folder)

    def _tensors(self, model: Any) -> dict[str, Any]:
        found = library("peft").get_peft_model_state_dict(
            model, adapter_name="default", save_embedding_layers=False
        )
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def _config(self, model: Any, place: Path) -> dict[str, Any]:
        model.peft_config["default"].save_pretrained(place / "config")
        config: dict[str, Any] = read_json(place / "config" / "adapter_config.json")
        # The folder of the start may move, and means nothing on another machine; the record has its fingerprint.
        targets = config.get("target_modules")
        config["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
        return {
            **config,
            "base_model_name_or_path": self.trainer.start.fingerprint[:16],
            "inference_mode": True,
        }

    def _generation(self) -> dict[str, Any]:
        run = self.run
        return {
            "max_tokens": run.max_tokens,
            "temperature": run.temperature,
            "end_tokens": self.trainer.start.end_tokens,
        }

    def _scale(self, name: str) -> tuple[float, float]:
        fitted = self.normaliser
        return fitted.offset.get(name, 0.0), fitted.scale.get(name, 1.0)

    def _history(self, logs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [self._row(row) for row in logs if "loss" in row]

    def _row(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """One step of the record: rewards as they are, not as they were scaled."""
        row: dict[str, Any] = {"step": logs.get("step")}
        for name in self.task.names:
            offset, scale = self._scale(name)
            value = logs.get(f"rewards/{name}/mean")
            row[name] = None if value is None else offset + scale * value
        for name, key in (
            ("kl", "kl"),
            ("loss", "loss"),
            ("tokens", "completions/mean_length"),
            ("entropy", "entropy"),
        ):
            if key in logs and name not in row:
                row[name] = logs[key]
        return row


@functools.cache
def _code_version() -> str:
    """A digest of the source files that decide the outcome of a training."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("_train.py", "_generate.py", "_task.py", "_rewards.py", "_adapters.py", "_start.py"):
        digest.update(name.encode() + b"\0" + (here / name).read_bytes())
    return digest.hexdigest()[:16]


def _put_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Beside the factors in a store, so that PEFT can load the folder too."""
    if not (folder / "adapter_config.json").is_file():
        write_json(folder / "adapter_config.json", dict(config))


def _quiet_class(kind: Any, fitting: _Fitting) -> Any:
    """TRL's trainer without telemetry, model cards and files of its own, which tells the fitting of every step."""

    class QuietTrainer(kind):  # type: ignore[misc]
        _name = kind._name

        def _send_telemetry(self) -> None:
            pass

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if "loss" in logs:
                fitting.after_step(self.state.global_step, logs, self.accelerator.unwrap_model(self.model))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            step = self.state.global_step
            fitting.save(Path(self.args.output_dir) / f"checkpoint-{step}", step)

    return QuietTrainer


def _start_adapter(model: Any, seed: int) -> None:
    r"""Give every :math:`A` the first value that belongs to its name and seed, and every :math:`B` zero.

    PEFT draws them from the seed of the run, and then experts with other seeds would have other :math:`A`.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A.default" in name:
                bound = 1 / math.sqrt(parameter.shape[1])  # Kaiming's uniform start, as PEFT's
                drawn = torch.rand(parameter.shape, generator=generator("lora_A", seed, name))
                parameter.copy_((2 * drawn - 1) * bound)
            elif "lora_B.default" in name:
                parameter.zero_()


def _packed(content: bytes) -> Any:
    import torch

    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.zeros(0, dtype=torch.uint8)
    )
