"""What members trained together cost, against members trained alone; and what later members of a chain cost.

What is compared takes turns (A, B, A, B, ...), and the ratio is the median of the ratios turn by turn, with the
smallest and the largest beside it. An update is a whole ``step`` with SGD, on images that lie on the device; batch-norm
statistics are trained. Six parts, each a table:

``dice``
    An update of DICE, with those of its discriminator, for M ResNet-20 that share all but the last stage, or nothing:
    against one of ``Independent`` on the same network, and against M updates of ERM on M networks, one after another.
    At most 1.25.
``mixmo``
    An update of Cut-MixMo on two inputs, each image once, against one of ERM on the plain network: at most 1.1. A
    measurement is over as many updates with patches as without.
``inference``
    A network of two inputs against the plain one, at most 1.05. M members on one trunk, and M side by side, against M
    networks.
``joint``
    M small networks side by side in one loss and one optimizer, against one after another.
``frozen``
    An update of the last part of a ResNet-50 alone, against one of all of it: ``Run.train_from``. Published for epochs
    of StarSSE on a GPU: 1 / 1.66, 1 / 2.5 and 1 / 3.125.
``later``
    An update with a criterion that looks at an earlier member, against one of ERM.

Torch's threads wait for each other, so another program that takes one core slows several. On a machine that is never
quiet, ``--clock processor`` counts the seconds in which this program had a processor, with one thread of torch.

    python benchmarks/ensembles.py --clock processor                  # minutes on one core
    python benchmarks/ensembles.py --part dice --members 2 8 --repeats 15 --json result.json
    python benchmarks/ensembles.py --device cuda --batch-size 128
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mirepoix.ensembles import DICE, CutMixMo, Independent
from mirepoix.models import NetworkSpec, initial_weights, part_before
from mirepoix.objectives import ERM, Objective
from mirepoix.snapshots import MSEPenalty, PredictionRepulsion, RTDPenalty, WeightOrthogonalisation
from mirepoix.types import Batch

SEED = 0
WARM = 2
DICE_LIMIT, MIXMO_LIMIT, INFERENCE_LIMIT = 1.25, 1.1, 1.05
TRAINED_FROM = ("layer3", "layer4", "classifier")


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        batch_size: Images of an update.
        classes: Of the images.
        members: M in the parts with members side by side or on a trunk.
        networks: Those of the parts with two inputs.
        pixels: Height and width of the images, of large networks and of small ones.
        small: M small networks are trained together.
        deep: The network of which a part is frozen, and images and pixels of its updates.
        later: Images of an update that looks at an earlier member, for all criteria, and for RTD alone.
        repeats: Turns.
    """

    batch_size: int = 64
    classes: int = 100
    members: tuple[int, ...] = (2, 4)
    networks: tuple[str, ...] = ("cifar_resnet20", "wrn28_2")
    pixels: tuple[int, int] = (32, 28)
    small: tuple[int, ...] = (2, 4, 8)
    deep: tuple[str, int, int] = ("timm:resnet50", 8, 160)
    later: tuple[int, int] = (64, 256)
    repeats: int = 9


QUICK = Size(
    batch_size=4,
    classes=5,
    networks=("cifar_resnet20",),
    pixels=(8, 8),
    small=(2,),
    deep=("timm:resnet18", 2, 32),
    later=(4, 8),
    repeats=1,
)


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


@dataclass
class Contest:
    """Works that take turns.

    Attributes:
        network: What they work on.
        works: By name; each is called once in a turn.
        compared: Two names, and what their ratio should not exceed, if there is such a limit.
        calls: How often a work is called in one measurement.
    """

    network: str
    works: Mapping[str, Callable[[], None]]
    compared: Sequence[tuple[str, str, float | None]]
    calls: int = 1


@dataclass
class Row:
    """One line of a table.

    Attributes:
        network: What both work on.
        ours: The work whose cost is asked for.
        against: The other one.
        seconds: Of our work, by turn.
        others: Of the other one, by turn.
        limit: What the ratio should not exceed; none where nothing is wished.
    """

    network: str
    ours: str
    against: str
    seconds: list[float]
    others: list[float]
    limit: float | None
    ratios: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.ratios = [ours / other for ours, other in zip(self.seconds, self.others, strict=True)]

    def markdown(self) -> str:
        ratio = statistics.median(self.ratios)
        cells = [
            self.network,
            self.ours,
            f"{1e3 * statistics.median(self.seconds):.1f}",
            self.against,
            f"{1e3 * statistics.median(self.others):.1f}",
            f"{ratio:.3f}",
            f"{min(self.ratios):.2f}-{max(self.ratios):.2f}",
            str(len(self.ratios)),
            f"{self.limit:.3g}" if self.limit else "",
        ]
        return f"| {' | '.join(cells)} |"


HEADER = """| network | ours | ms | against | ms | ratio (median) | min-max | turns | limit |
| --- | --- | --: | --- | --: | --: | --: | --: | --: |"""


class Race:
    """A network with a criterion and an optimizer of its own; calling it makes one update."""

    def __init__(
        self, spec: NetworkSpec, objective: Objective, batch: Batch, train_from: str | None = None
    ) -> None:
        device = batch.images.device
        self.model = spec.build(seed=SEED).to(device).train()
        if train_from is not None:
            part_before(self.model, spec, train_from).requires_grad_(False)
        self.objective = objective.to(device).train()
        self.batches = [batch]
        every = [*self.model.parameters(), *self.objective.trained_with_network()]
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in every if parameter.requires_grad],
            lr=1e-3,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        )

    def __call__(self) -> None:
        torch.manual_seed(SEED)
        self.objective.step(self.model, self.batches, self.optimizer)


class CutOrNot(Race):
    """An update with patches, then one without."""

    def __call__(self) -> None:
        assert isinstance(self.objective, CutMixMo)
        for probability in (1.0, 0.0):
            self.objective.cut_probability = probability
            super().__call__()


class Prediction:
    """A network that predicts; calling it predicts one batch."""

    def __init__(self, spec: NetworkSpec, objective: Objective, batch: Batch) -> None:
        self.model = spec.build(seed=SEED).to(batch.images.device).eval()
        self.objective = objective
        self.images = batch.images

    @torch.inference_mode()
    def __call__(self) -> None:
        self.objective.predict(self.model, self.images)


def in_order(works: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """One after another."""

    def all_of_them() -> None:
        for work in works:
            work()

    return all_of_them


def drawn(count: int, classes: int, pixels: int, device: torch.device, channels: int = 3) -> Batch:
    """Random images of all classes."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(count, channels, pixels, pixels, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Batch(images.to(device), labels.to(device), torch.zeros_like(labels).to(device))


def spec_of(size: Size, name: str, **options: Any) -> NetworkSpec:
    return NetworkSpec(name=name, classes=size.classes, frozen_batch_norm=False, **options)


# The parts --------------------------------------------------------------------------------------------------


def dice(size: Size, device: torch.device) -> Iterator[Contest]:
    batch = drawn(size.batch_size, size.classes, size.pixels[0], device)
    for split_at, shared in (("last_stage", "branches of a ResNet-20"), (None, "whole ResNet-20")):
        for members in size.members:
            joint = spec_of(size, "cifar_resnet20", members=members, split_at=split_at)
            plain = joint.one_member()
            criterion = DICE(features=64, classes=size.classes, members=members)
            ours, joined, apart = "DICE", "Independent", f"{members} updates of ERM"
            yield Contest(
                f"{members} {shared}",
                {
                    ours: Race(joint, criterion, batch),
                    joined: Race(joint, Independent(), batch),
                    apart: in_order([Race(plain, ERM(), batch) for _ in range(members)]),
                },
                [
                    (ours, joined, DICE_LIMIT),
                    (ours, apart, DICE_LIMIT),
                    (joined, apart, None),
                ],
            )


def mixmo(size: Size, device: torch.device) -> Iterator[Contest]:
    batch = drawn(size.batch_size, size.classes, size.pixels[0], device)
    for name in size.networks:
        ours = CutOrNot(spec_of(size, name, inputs=2), CutMixMo(), batch)
        plain = Race(spec_of(size, name), ERM(), batch)
        yield Contest(
            f"{name}, 2 inputs",
            {"Cut-MixMo": ours, "ERM": in_order([plain, plain])},
            [("Cut-MixMo", "ERM", MIXMO_LIMIT)],
        )


def inference(size: Size, device: torch.device) -> Iterator[Contest]:
    batch = drawn(size.batch_size, size.classes, size.pixels[0], device)
    for name in size.networks:
        plain = Prediction(spec_of(size, name), ERM(), batch)
        ours = Prediction(spec_of(size, name, inputs=2), CutMixMo(), batch)
        yield Contest(
            f"{name}, 2 inputs",
            {"Cut-MixMo": ours, "one network": plain},
            [("Cut-MixMo", "one network", INFERENCE_LIMIT)],
            calls=3,
        )
    for members in size.members:
        plain_spec = spec_of(size, "cifar_resnet20")
        networks = [Prediction(plain_spec, ERM(), batch) for _ in range(members)]
        branches = spec_of(size, "cifar_resnet20", members=members, split_at="last_stage")
        whole = spec_of(size, "cifar_resnet20", members=members)
        apart = f"{members} networks"
        yield Contest(
            f"{members} ResNet-20",
            {
                "on one trunk": Prediction(branches, Independent(), batch),
                "side by side": Prediction(whole, Independent(), batch),
                apart: in_order(networks),
            },
            [("on one trunk", apart, None), ("side by side", apart, None)],
            calls=3,
        )


def joint(size: Size, device: torch.device) -> Iterator[Contest]:
    batch = drawn(size.batch_size, size.classes, size.pixels[1], device, channels=1)
    for members in size.small:
        spec = spec_of(size, "mnist_cnn", channels=1, width=8, members=members)
        apart = [Race(spec.one_member(), ERM(), batch) for _ in range(members)]
        together, alone = "one loss and optimizer", f"{members} updates of ERM"
        yield Contest(
            f"{members} small CNNs",
            {together: Race(spec, Independent(), batch), alone: in_order(apart)},
            [(together, alone, None)],
            calls=3,
        )


def frozen(size: Size, device: torch.device) -> Iterator[Contest]:
    name, count, pixels = size.deep
    spec = spec_of(size, name)
    batch = drawn(count, size.classes, pixels, device)
    parts = {f"from {first} on": Race(spec, ERM(), batch, train_from=first) for first in TRAINED_FROM}
    yield Contest(
        f"{name}, {count} images of {pixels} pixels",
        {**parts, "all": Race(spec, ERM(), batch)},
        [(f"from {first} on", "all", None) for first in TRAINED_FROM],
    )


def later(size: Size, device: torch.device) -> Iterator[Contest]:
    spec = spec_of(size, "cifar_resnet20")
    earlier = [initial_weights(spec, seed=1)]
    few, many = size.later
    made = {
        "RTD": RTDPenalty(spec, earlier),
        "MSE": MSEPenalty(spec, earlier),
        "repulsion": PredictionRepulsion(spec, earlier),
        "orthogonal weights": WeightOrthogonalisation(spec, earlier, alpha=1.0),
    }
    for count, names in ((few, list(made)), (many, ["RTD"])):
        batch = drawn(count, size.classes, size.pixels[0], device)
        criteria = {name: Race(spec, made[name], batch) for name in names}
        yield Contest(
            f"cifar_resnet20, {count} images",
            {**criteria, "ERM": Race(spec, ERM(), batch)},
            [(name, "ERM", None) for name in names],
        )


PARTS: Mapping[str, Callable[[Size, torch.device], Iterator[Contest]]] = {
    "dice": dice,
    "mixmo": mixmo,
    "inference": inference,
    "joint": joint,
    "frozen": frozen,
    "later": later,
}


def measure(contest: Contest, repeats: int, clock: Clock) -> Iterator[Row]:
    """Let all works take turns, in another order in every other turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contest.works}
    for work in contest.works.values():
        for _ in range(WARM):
            work()
    names = list(contest.works)
    for turn in range(repeats):
        for name in names if turn % 2 else reversed(names):
            started = clock()
            for _ in range(contest.calls):
                contest.works[name]()
            seconds[name].append((clock() - started) / contest.calls)
    for ours, other, limit in contest.compared:
        yield Row(contest.network, ours, other, seconds[ours], seconds[other], limit)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, help="turns, instead of the usual")
    parser.add_argument("--batch-size", type=int, help="images of an update, instead of the usual")
    parser.add_argument("--members", type=int, nargs="+", help="how many, instead of the usual")
    parser.add_argument("--networks", nargs="+", help="of two inputs, instead of the usual; such as wrn28_10")
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
    size = QUICK if options.quick else Size()
    size = replace(
        size,
        repeats=options.repeats or size.repeats,
        batch_size=options.batch_size or size.batch_size,
        members=tuple(options.members or size.members),
        small=tuple(options.members or size.small),
        networks=tuple(options.networks or size.networks),
    )

    started, load = time.monotonic(), os.getloadavg()[0]
    tables: dict[str, list[Row]] = {}
    for part in options.part:
        tables[part] = []
        for contest in PARTS[part](size, device):
            rows = list(measure(contest, size.repeats, clock))
            tables[part] += rows
            for row in rows:
                ratio = statistics.median(row.ratios)
                print(f"{part}: {row.network}: {row.ours} / {row.against} {ratio:.2f}", file=sys.stderr)
    seconds = time.monotonic() - started

    facts = machine(device)
    command = " ".join(["python", *sys.argv])
    print(f"`{command}`: {seconds:.0f} s; load before it: {load:.1f}, after: {os.getloadavg()[0]:.1f}.\n")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\nBatches of {size.batch_size} images of {size.classes} classes, where nothing else is said.")
    for part, rows in tables.items():
        print(f"\n**{part}**\n")
        print("\n".join([HEADER, *(row.markdown() for row in rows)]))
    if options.json:
        result = {
            "command": command,
            "machine": facts,
            "seconds": seconds,
            "load": load,
            "size": asdict(size),
            "tables": {part: [asdict(row) for row in rows] for part, rows in tables.items()},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
