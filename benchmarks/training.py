"""The loop against the bare torch step, and the data path against DomainBed's loaders.

Two parts, each a ratio within one run. What is compared takes turns (A, B, A, B, ...), so that a machine that
slows down slows both; the ratio is the median over the turns, with the smallest and the largest beside it.

``loop``
    Updates per second of ``Trainer.fit`` (batches drawn from decoded images in memory, every collector on
    from the first update) over those of ``zero_grad, forward, cross-entropy, backward, step`` on one batch
    that already lies on the device: same network, same weights, same Adam, same convolution flags. Updates
    are timed between two calls of ``on_progress``, after a warm-up and before the last evaluation, so neither
    the set-up nor an evaluation counts. Expected with cheap batches (no augmentation): at least 0.95.

``data``
    Images per second of ``draw``, ahead of time in a thread as the loop does it, over those of DomainBed's
    loaders: for each domain a ``DataLoader`` with worker processes that samples with replacement, opens every
    picture from disk and applies torchvision's transforms. Batches are 32 images per domain at 224 pixels.
    Once on PACS as it lies in the folder, and once re-encoded at 227 pixels, its original size, when it is
    smaller. Both sides are timed from a drained queue on.

Torch's threads wait for each other, so another program that takes one core slows several: the run says what
share of the machine others took; above a tenth, take the numbers again. On a machine that is never quiet,
``--clock processor`` counts the seconds in which this program had a processor, with one thread of torch and
loaders without processes: how much work there is, not how well it is spread over cores.

    python benchmarks/training.py                 # both parts, about 4 minutes on 2 cores
    python benchmarks/training.py --part data --data DIR --device cuda --json result.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from mirepoix.data import Domain, Split, Task, Transform, draw, folder_task, prefetch
from mirepoix.data._images import ArrayImages
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DOMAINS, CLASSES, SEED = 3, 7, 0


@dataclass(frozen=True)
class Row:
    """One ratio.

    Attributes:
        part: ``loop`` or ``data``.
        what: What was measured.
        unit: Of ``ours`` and ``other``.
        ours: Median rate.
        other: Median rate of what it is compared with.
        against: What it is compared with.
        ratios: Ours over the other, turn by turn.
    """

    part: str
    what: str
    unit: str
    ours: float
    other: float
    against: str
    ratios: tuple[float, ...]

    def markdown(self) -> str:
        cells = (
            self.part,
            self.what,
            f"{self.ours:.1f}",
            self.against,
            f"{self.other:.1f}",
            self.unit,
            f"{statistics.median(self.ratios):.3f}",
            f"{min(self.ratios):.2f}-{max(self.ratios):.2f}",
            str(len(self.ratios)),
        )
        return f"| {' | '.join(cells)} |"


HEADER = """| part | ours | rate | against | rate | unit | ratio (median) | min-max | turns |
| --- | --- | --: | --- | --: | --- | --: | --: | --: |"""


def in_turns(turns: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The rates of each measure, taken one after the other in every turn."""
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(turns):
        for name, measure in measures.items():
            rates[name].append(measure())
            print(f"  turn {turn + 1}/{turns}  {name}: {rates[name][-1]:.1f}", file=sys.stderr, flush=True)
    return rates


def row(part: str, unit: str, rates: Mapping[str, Sequence[float]], ours: str, other: str) -> Row:
    ratios = tuple(a / b for a, b in zip(rates[ours], rates[other], strict=True))
    medians = statistics.median(rates[ours]), statistics.median(rates[other])
    return Row(part, ours, unit, *medians, other, ratios)


@dataclass(frozen=True)
class Clock:
    """What seconds are: those on the wall, or those in which this program had a processor.

    Attributes:
        device: Whose pending work is waited for.
        processor: Count the seconds of processors, of all threads together.
    """

    device: torch.device
    processor: bool

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.processor else time.perf_counter()


# The loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network with the images it sees.

    Attributes:
        network: Name of the architecture.
        size: Pixels a side that the network sees.
        stored: Pixels a side of the images in memory: 8/7 of the size, as a folder task keeps them, or equal.
        warm: Updates before the clock starts, at least 2: the first one is followed by an evaluation.
        steps: Updates timed.
        turns: Repetitions.
    """

    network: str
    size: int
    stored: int
    warm: int
    steps: int
    turns: int


CASES = (
    Case("cifar_resnet20", 32, 37, warm=4, steps=15, turns=9),
    Case("mnist_cnn", 28, 28, warm=2, steps=8, turns=5),
    Case("timm:resnet18", 96, 96, warm=2, steps=3, turns=3),
)
QUICK_CASES = (
    Case("cifar_resnet20", 32, 37, warm=2, steps=3, turns=1),
    Case("mnist_cnn", 28, 28, warm=2, steps=2, turns=1),
)


def task_in_memory(case: Case, images: int = 100) -> Task:
    """Random pixels; the validation part (a fifth) is small, and is evaluated outside the timed updates."""
    random = np.random.default_rng(SEED)
    domains = [
        Domain(
            f"domain_{number}",
            ArrayImages(random.integers(0, 256, (images, 3, case.stored, case.stored), dtype=np.uint8)),
            np.arange(images) % CLASSES,
        )
        for number in range(DOMAINS)
    ]
    return Task("random", tuple(map(str, range(CLASSES))), tuple(domains), Transform(case.size), digest="")


@dataclass(frozen=True)
class Race:
    """Our loop and the bare step from the same weights."""

    case: Case
    clock: Clock
    spec: NetworkSpec
    theta: Weights
    split: Split
    run: Run

    @classmethod
    def of(cls, case: Case, clock: Clock) -> Race:
        # On an accelerator our loop reports progress every tenth update only.
        warm = case.warm if clock.device.type == "cpu" else 10 * math.ceil(case.warm / 10)
        steps = warm + case.steps
        spec = NetworkSpec(name=case.network, classes=CLASSES)
        run = Run(seed=SEED, steps=steps, batch_size=16, check_every=steps, average_from=1)
        split = task_in_memory(case).split(None)
        return cls(case, clock, spec, initial_weights(spec), split, run)

    def ours(self, augment: bool) -> float:
        """Updates per second of ``Trainer.fit`` from the end of the warm-up to the last update."""
        stamps: list[tuple[int, float]] = []

        def on_progress(done: int, total: int, loss: float, accuracy: float | None) -> None:
            if (done >= self.case.warm and not stamps) or done == total:
                stamps.append((done, self.clock()))

        trainer = Trainer(self.spec, loop=Loop(device=str(self.clock.device)), on_progress=on_progress)
        trainer.fit(self.theta, self.split, self.run.with_(augment=augment))
        (first, started), (last, ended) = stamps
        return (last - first) / (ended - started)

    def bare(self) -> float:
        """Updates per second of the statements that no training can do without."""
        run = self.run
        model = self.spec.build()
        model.load_state_dict(dict(self.theta))
        model.to(self.clock.device).train()
        batches = draw(
            self.split, 0, batch_size=run.batch_size, seed=run.seed, augment=False, device=self.clock.device
        )
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        optimizer = torch.optim.Adam(model.parameters(), run.learning_rate, weight_decay=run.weight_decay)

        def update() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images).logits, labels).backward()
            optimizer.step()

        # The flags of our loop: what is measured is the loop around the step, not other kernels.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for _ in range(self.case.warm):
                update()
            started = self.clock()
            for _ in range(self.case.steps):
                update()
            return self.case.steps / (self.clock() - started)


def loop_part(cases: Sequence[Case], clock: Clock) -> Iterator[Row]:
    for case in cases:
        name = f"{case.network} {case.size} px"
        print(f"loop: {name}", file=sys.stderr)
        race = Race.of(case, clock)
        plain, augmented, step = f"{name}, no augmentation", f"{name}, augmented", "bare torch step"
        rates = in_turns(
            case.turns,
            {plain: partial(race.ours, False), step: race.bare, augmented: partial(race.ours, True)},
        )
        yield row("loop", "updates/s", rates, plain, step)
        yield row("loop", "updates/s", rates, augmented, step)


# The data path ----------------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The pictures of one domain, opened from disk each time, as torchvision's ``ImageFolder`` does."""

    def __init__(self, folder: Path, augment: bool, size: int) -> None:
        classes = sorted(folder.iterdir())
        self.samples = [
            (file, label) for label, inner in enumerate(classes) for file in sorted(inner.iterdir())
        ]
        v1 = torchvision.transforms
        augmentation = [
            v1.RandomResizedCrop(size, scale=(0.7, 1.0)),
            v1.RandomHorizontalFlip(),
            v1.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v1.RandomGrayscale(),
        ]
        steps = augmentation if augment else [v1.Resize((size, size))]
        self.transform = v1.Compose([*steps, v1.ToTensor(), v1.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        file, label = self.samples[number]
        with file.open("rb") as opened, Image.open(opened) as picture:
            return self.transform(picture.convert("RGB")), label


class Endless(torch.utils.data.Sampler[list[int]]):
    """Batches of numbers drawn with replacement, without end."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randint(self.count, (self.batch_size,), generator=generator).tolist()


@dataclass(frozen=True)
class Pull:
    """How much is read.

    Attributes:
        batch_size: Images per domain and step.
        size: Pixels a side that the network sees.
        steps: Steps timed.
        turns: Repetitions.
        per_class: Pictures per domain and class in the folder of re-encoded pictures.
    """

    batch_size: int
    size: int
    steps: int
    turns: int
    per_class: int


PULL = Pull(batch_size=32, size=224, steps=5, turns=4, per_class=40)
QUICK_PULL = Pull(batch_size=4, size=64, steps=2, turns=1, per_class=2)


def timed(steps: Iterator[Any], pull: Pull, drain: int, clock: Clock) -> float:
    """Images per second of an iterator over steps, after ``drain`` of them, which were ready in advance."""
    for _ in range(drain):
        next(steps)
    started = clock()
    for _ in range(pull.steps):
        next(steps)
    return pull.steps * DOMAINS * pull.batch_size / (clock() - started)


def our_data(task: Task, target: str, pull: Pull, augment: bool, clock: Clock) -> float:
    split = task.split(target)

    def make(step: int) -> Any:
        return draw(split, step, batch_size=pull.batch_size, seed=SEED, augment=augment, device=clock.device)

    with closing(prefetch(make, range(10**9))) as steps:
        return timed(steps, pull, 3, clock)


def domainbed_data(folders: Sequence[Path], pull: Pull, augment: bool, workers: int, clock: Clock) -> float:
    """One loader per domain; its processes end with the measurement, so that they do not disturb the next."""
    torch.manual_seed(SEED)  # of the workers' transforms
    loaders = []
    for number, folder in enumerate(folders):
        pictures = Pictures(folder, augment, pull.size)
        loaders.append(
            torch.utils.data.DataLoader(
                pictures,
                batch_sampler=Endless(len(pictures), pull.batch_size, number),
                num_workers=workers,
                pin_memory=clock.device.type == "cuda",
            )
        )

    def steps() -> Iterator[Any]:
        for batches in zip(*loaders, strict=True):
            yield [(images.to(clock.device), labels.to(clock.device)) for images, labels in batches]

    with closing(steps()) as endless:
        # Each worker may hold two batches when the first one arrives.
        return timed(endless, pull, 2 * workers + 1, clock)


def reencoded(folder: Path, to: Path, side: int, per_class: int) -> Path:
    """A smaller folder with the pictures at ``side`` pixels, spread evenly over each class."""
    for label in sorted(folder.glob("*/*/")):
        files = sorted(label.iterdir())
        place = to / label.relative_to(folder)
        place.mkdir(parents=True)
        for file in files[:: max(1, len(files) // per_class)][:per_class]:
            with Image.open(file) as picture:
                resized = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                resized.save(place / file.name, quality=90)
    return to


def data_part(folder: Path, pull: Pull, clock: Clock, quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="mirepoix-benchmark-") as temporary:
        with Image.open(next(folder.glob("*/*/*"))) as picture:
            side = picture.width
        small = reencoded(folder, Path(temporary, "small"), side, pull.per_class) if quick else folder
        yield from data_rows(small, Path(temporary, "cache"), f"PACS {side} px", pull, clock)
        if side < 227 and not quick:
            large = reencoded(folder, Path(temporary, "large"), 227, pull.per_class)
            yield from data_rows(large, Path(temporary, "cache"), "PACS at 227 px", pull, clock)


def data_rows(folder: Path, cache: Path, name: str, pull: Pull, clock: Clock) -> Iterator[Row]:
    print(f"data: {name}", file=sys.stderr)
    cached = folder_task(folder, size=pull.size, cache_dir=cache)
    streaming = folder_task(folder, size=pull.size, memory_budget=1)
    *sources, target = cached.domain_names
    folders = [folder / source for source in sources]

    def ours(task: Task, augment: bool) -> Callable[[], float]:
        return partial(our_data, task, target, pull, augment, clock)

    def theirs(augment: bool, workers: int) -> Callable[[], float]:
        return partial(domainbed_data, folders, pull, augment, workers, clock)

    # The processor's seconds of other processes are not ours to read, so then the loaders have none.
    counts = [0] if clock.processor else sorted({2, os.cpu_count() or 2})
    loaders = {workers: f"DomainBed's loaders, {workers} workers each" for workers in counts}
    kept, read = f"{name}, cached", f"{name}, streaming"
    rates = in_turns(
        pull.turns,
        {kept: ours(cached, True)}
        | {label: theirs(True, workers) for workers, label in loaders.items()}
        | {read: ours(streaming, True)},
    )
    for label in loaders.values():
        yield row("data", "images/s", rates, kept, label)
        yield row("data", "images/s", rates, read, label)
    plain = {what: f"{what}, not augmented" for what in (kept, read)}
    resize = f"{loaders[counts[0]]}, not augmented"
    rates = in_turns(
        max(1, pull.turns - 2),
        {
            plain[kept]: ours(cached, False),
            resize: theirs(False, counts[0]),
            plain[read]: ours(streaming, False),
        },
    )
    yield row("data", "images/s", rates, plain[kept], resize)
    yield row("data", "images/s", rates, plain[read], resize)


# The command ------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """Where this runs."""
    model, facts = platform.machine(), Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": model,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def busy_seconds() -> tuple[float, float]:
    """Seconds of processors: of all programs since the machine started, and of this one with its children."""
    file = Path("/proc/stat")
    if not file.exists():
        return math.nan, math.nan
    user, nice, system, _idle, _wait, *rest = map(int, file.read_text().splitlines()[0].split()[1:])
    everyone = (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")  # with stolen time
    return everyone, sum(os.times()[:4])


def main() -> None:
    """Measure what the command line asks for and print the table."""
    root = Path(__file__).parents[1]
    shared = Path(os.environ.get("MIREPOIX_SHARED", root.parent / "shared"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["loop", "data", "all"], default="all")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder that holds PACS")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--threads", type=int, help="of torch; all cores, and one with --clock processor")
    parser.add_argument("--json", type=Path, help="also write every ratio to this file")
    parser.add_argument("--quick", action="store_true", help="see that it works; no numbers to report")
    options = parser.parse_args()
    device, quick = torch.device(options.device), options.quick
    clock = Clock(device, options.clock == "processor")
    threads = options.threads or (1 if clock.processor else None)
    if threads:
        torch.set_num_threads(threads)

    everyone, us = busy_seconds()
    started = time.monotonic()
    rows: list[Row] = []
    skipped = None
    if options.part != "data":
        rows += loop_part(QUICK_CASES if quick else CASES, clock)
    if options.part != "loop":
        folder = options.data / "PACS"
        if folder.is_dir():
            rows += data_part(folder, QUICK_PULL if quick else PULL, clock, quick)
        else:
            skipped = f"The data part was skipped: expected the folder {folder}; name its parent with --data."
    seconds = time.monotonic() - started
    everyone_after, us_after = busy_seconds()
    others = (everyone_after - everyone - (us_after - us)) / seconds / (os.cpu_count() or 1)

    facts = machine(device)
    command = " ".join(["python", *sys.argv])
    print(f"`{command}`: {seconds:.0f} s; other programs took {max(0, others):.0%} of the processors.\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    print("\n".join([HEADER, *(row.markdown() for row in rows)]))
    if skipped:
        print(f"\n{skipped}")
    if options.json:
        result = {
            "command": command,
            "machine": facts,
            "seconds": seconds,
            "others": others,
            "skipped": skipped,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
