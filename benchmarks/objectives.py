"""What an update of each objective costs, against one of ERM.

Three parts, each a table. A row is one objective; its updates and those of ERM take turns, and the ratio is the median
of the ratios turn by turn, with the smallest and the largest beside it. ERM against itself says how steady the machine
is. An update is a whole `step`, with Adam's, on batches that lie on the device: 3 source domains, 7 classes.

``resnet20``
    A whole ResNet-20 on 32 images of 32 pixels per domain, all objectives.
``features``
    What an objective adds beside the network: the featurizer is one weight for each of 2,048 given features, as many as
    ResNet-50 has, so that there are gradients to the features and no convolutions. 32 samples per domain, all
    objectives but ARM, CutMix and ManifoldMixup, which need images. Read the milliseconds, not the ratio; one that goes
    through the network more than once costs more there than here.
``resnet50``
    A whole ResNet-50 on 8 images of 96 pixels per domain, by default Fishr and ERM alone.

Penalties are on, as behind the last anneal step. Where a network and a discriminator take turns, one measurement is
over all turns, divided by the updates; that can be below 1, as some updates leave the network alone. The wish for
Fishr, whose variances have a closed form, is at most 1.15 times ERM with both networks.

Torch's threads wait for each other, so another program that takes one core slows several. On a machine that is never
quiet, ``--clock processor`` counts the seconds in which this program had a processor, with one thread of torch.

    python benchmarks/objectives.py                         # minutes on 2 cores with nothing else running
    python benchmarks/objectives.py --part resnet50 --only Fishr Fish --repeats 9 --json result.json
    python benchmarks/objectives.py --device cuda --part resnet50 --pixels 224 --batch-size 32 --only all
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirepoix.models import Network, NetworkSpec
from mirepoix.objectives import OBJECTIVES, Objective, objective
from mirepoix.types import Batch

DOMAINS, CLASSES, CHANNELS, SEED = 3, 7, 3, 0
WISHES = {"fishr": 1.15}

# Options with which the penalties are there from the first update, or the third.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "irm": {"irm_penalty_anneal_iters": 0},
    "vrex": {"vrex_penalty_anneal_iters": 0},
    "ib_erm": {"ib_penalty_anneal_iters": 0},
    "ib_irm": {"ib_penalty_anneal_iters": 0, "irm_penalty_anneal_iters": 0},
    "eqrm": {"eqrm_burnin_iters": 0},
    "rdm": {"rdm_penalty_anneal_iters": 0},
    "fishr": {"penalty_anneal_iters": 0},
    "trm": {"iters": 0},
    "erm_plus_plus": {"linear_steps": 0},
}
# Updates until the same player has its turn again.
TURNS = {"dann": 2, "cdann": 2, "adrmx": 3}
NEED_IMAGES = ("arm", "cutmix", "manifold_mixup")
WARM = 2


@dataclass(frozen=True)
class Case:
    """A network and its batches.

    Attributes:
        part: What it is called.
        network: Name of the architecture; none for features without one.
        pixels: Height and width of the images, or the number of features.
        batch_size: Samples per domain.
        updates: Updates in one measurement, at least.
        only: The objectives by default; none for all.
    """

    part: str
    network: str | None
    pixels: int
    batch_size: int
    updates: int
    only: tuple[str, ...] = ()

    def describe(self) -> str:
        if self.network is None:
            return f"{self.pixels:,} features, {DOMAINS} x {self.batch_size} samples"
        return f"{self.network}, {DOMAINS} x {self.batch_size} images of {self.pixels} pixels"


CASES = (
    Case("resnet20", "cifar_resnet20", 32, 32, updates=1),
    Case("features", None, 2048, 32, updates=10),
    Case("resnet50", "timm:resnet50", 96, 8, updates=1, only=("erm", "fishr")),
)
QUICK_CASES = (
    Case("resnet20", "cifar_resnet20", 32, 2, updates=1),
    Case("features", None, 16, 4, updates=1),
    Case("resnet50", "timm:resnet50", 32, 2, updates=1, only=("erm", "fishr")),
)


@dataclass
class Row:
    """One line of a table.

    Attributes:
        objective: Its class.
        seconds: Of an update, by turn.
        erm: Seconds of an update of ERM beside it, by turn.
        wish: The ratio that it should not exceed; none where nothing is wished.
    """

    objective: str
    seconds: list[float] = field(default_factory=list)
    erm: list[float] = field(default_factory=list)
    wish: float | None = None

    def ratios(self) -> list[float]:
        return [ours / erm for ours, erm in zip(self.seconds, self.erm, strict=True)]

    def markdown(self) -> str:
        more = statistics.median(a - b for a, b in zip(self.seconds, self.erm, strict=True))
        cells = [
            f"`{self.objective}`",
            f"{1e3 * statistics.median(self.seconds):.2f}",
            f"{1e3 * statistics.median(self.erm):.2f}",
            f"{1e3 * more:+.2f}",
            f"{statistics.median(self.ratios()):.3f}",
            f"{min(self.ratios()):.2f}-{max(self.ratios()):.2f}",
            str(len(self.seconds)),
            f"{self.wish:g}" if self.wish else "",
        ]
        return f"| {' | '.join(cells)} |"


HEADER = """| objective | ms | ms of ERM | ms more | ratio (median) | min-max | turns | wish |
| --- | --: | --: | --: | --: | --: | --: | --: |"""


class Given(nn.Module):
    """A featurizer that passes features on, each with a weight of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight


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


class Race:
    """An objective with a network and an optimizer of its own."""

    def __init__(self, name: str, case: Case, clock: Clock) -> None:
        self.case, self.clock, self.turns = case, clock, TURNS.get(name, 1)
        device = clock.device
        if case.network is None:
            torch.manual_seed(SEED)
            self.model = Network(Given(case.pixels), case.pixels, CLASSES)
        else:
            channels = CHANNELS + (name == "arm")  # whose network sees one more
            self.model = NetworkSpec(name=case.network, classes=CLASSES, channels=channels).build(seed=SEED)
        made = objective(
            name,
            features=self.model.feature_size,
            classes=CLASSES,
            domains=DOMAINS,
            channels=CHANNELS,
            featurizer=self.model.featurizer,
            **OPTIONS.get(name, {}),
        )
        self.objective: Objective = made.to(device).train()
        self.model.to(device).train()
        self.optimizer = torch.optim.Adam(
            [*self.model.parameters(), *self.objective.trained_with_network()], lr=1e-5
        )
        self.batches = batches(case, device)
        self.updates(max(WARM, self.turns))

    def updates(self, count: int) -> None:
        for number in range(count):
            torch.manual_seed(number)
            self.objective.step(self.model, self.batches, self.optimizer)

    def seconds(self) -> float:
        """Of an update, over all turns."""
        rounds = -(-self.case.updates // self.turns) * self.turns
        started = self.clock()
        self.updates(rounds)
        return (self.clock() - started) / rounds


def batches(case: Case, device: torch.device) -> list[Batch]:
    """Random images of every domain, each somewhat brighter than the one before, with all classes."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (case.pixels,) if case.network is None else (CHANNELS, case.pixels, case.pixels)
    made = []
    for domain in range(DOMAINS):
        images = torch.randn(case.batch_size, *shape, generator=generator) + 0.1 * domain
        labels = torch.arange(case.batch_size) % CLASSES
        made.append(Batch(images.to(device), labels.to(device), torch.full_like(labels, domain).to(device)))
    return made


def measure(case: Case, names: Sequence[str], repeats: int, clock: Clock) -> Iterator[Row]:
    """One row per objective, which takes turns with ERM."""
    erm = Race("erm", case, clock)
    fitting = [name for name in names if case.network is not None or name not in NEED_IMAGES]
    races = {name: Race(name, case, clock) for name in fitting}
    wishes = WISHES if case.network else {}
    rows = {name: Row(OBJECTIVES[name].__name__, wish=wishes.get(name)) for name in races}
    for turn in range(repeats):
        # Rounds over all of them, so that a slow minute does not hit one alone.
        for name, race in races.items():
            if turn % 2:
                rows[name].seconds.append(race.seconds())
                rows[name].erm.append(erm.seconds())
            else:
                rows[name].erm.append(erm.seconds())
                rows[name].seconds.append(race.seconds())
        ratios = ", ".join(f"{row.objective} {row.ratios()[-1]:.2f}" for row in rows.values())
        print(f"  turn {turn + 1}/{repeats}: {ratios}", file=sys.stderr, flush=True)
    yield from rows.values()


# The command line -------------------------------------------------------------------------------------------


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
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def main() -> None:
    """Measure what the command line asks for and print the tables."""
    names = {OBJECTIVES[name].__name__: name for name in OBJECTIVES}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=[case.part for case in CASES])
    parser.add_argument("--only", nargs="+", choices=[*names, "all"], help="objectives, instead of the usual")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, help="samples per domain, instead of the usual")
    parser.add_argument("--pixels", type=int, help="of the images, instead of the usual")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--threads", type=int, help="of torch; all cores, and one with --clock processor")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--quick", action="store_true", help="see that it works; no numbers to report")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = Clock(device, options.clock == "processor")
    threads = options.threads or (1 if clock.processor else None)
    if threads:
        torch.set_num_threads(threads)

    started, load = time.monotonic(), os.getloadavg()[0]
    tables: dict[Case, list[Row]] = {}
    for usual in QUICK_CASES if options.quick else CASES:
        if options.part and usual.part not in options.part:
            continue
        pixels = options.pixels if usual.network else None
        case = replace(
            usual, pixels=pixels or usual.pixels, batch_size=options.batch_size or usual.batch_size
        )
        chosen = [names[label] for label in options.only or () if label != "all"]
        chosen = chosen or list((not options.only and case.only) or names.values())
        print(f"{case.part}: {case.describe()}", file=sys.stderr)
        tables[case] = list(measure(case, chosen, 1 if options.quick else options.repeats, clock))
    seconds = time.monotonic() - started

    facts = machine(device)
    command = " ".join(["python", *sys.argv])
    print(f"`{command}`: {seconds:.0f} s; load before it: {load:.1f}, after: {os.getloadavg()[0]:.1f}.\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for case, rows in tables.items():
        print(f"\n**{case.part}**: {case.describe()}\n")
        print("\n".join([HEADER, *(row.markdown() for row in rows)]))
    if options.json:
        result = {
            "command": command,
            "machine": facts,
            "seconds": seconds,
            "load": load,
            "tables": [
                {**asdict(case), "rows": [{**asdict(row), "ratios": row.ratios()} for row in rows]}
                for case, rows in tables.items()
            ],
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
