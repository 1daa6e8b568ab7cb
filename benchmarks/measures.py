"""What measures and evidence cost: all pairs of many members, topology, and the way between two weights.

Three parts, each a table:

``pairs``
    `measure_predictions`, all default measures at once, for 60 members, 50,000 samples and 100 classes in float32
    (1.2 GB): seconds, and the largest resident size of a process that does nothing else. Beside it the loop over
    pairs that calls the function of each measure of pairs, on some pairs, and scaled to all; and the
    Jensen-Shannon divergence of all pairs, which is not among the defaults, on some samples, and scaled.
``rtd``
    The representation topology divergence of 256 points by each engine, and RTD-Lite of 2,048 points; both
    directions of one subset. The points are two random layers of the same objects.
``path``
    `connect` at 11 points between two ResNet-20 against eleven evaluations of one. Both sides take turns; the
    ratio is the median of the ratios turn by turn.

Times are medians over the rounds, with the smallest and the largest beside them.

    python benchmarks/measures.py                          # about 5 minutes on 2 cores, with 2 GB free
    python benchmarks/measures.py --part path --rounds 9 --json result.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How large the works are."""

    members: int = 60
    samples: int = 50_000
    classes: int = 100
    pairs: int = 12
    few_samples: int = 1_000
    points: int = 256
    lite_points: int = 2_048
    images: int = 1_000


QUICK = Sizes(
    members=4, samples=200, classes=5, pairs=2, few_samples=50, points=32, lite_points=64, images=16
)


@dataclass
class Row:
    """One line of a table.

    Attributes:
        what: What was done.
        seconds: Of it, by round.
        ratios: Over what it is compared with, by round; none for what the others are compared with.
        gigabytes: The largest resident size, by round; none where it is not measured.
        remark: What a reader must know.
    """

    what: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    gigabytes: list[float] = field(default_factory=list)
    remark: str = ""

    def markdown(self) -> str:
        cells = [self.what]
        for values in (self.seconds, self.ratios):
            cells += [_median(values), f"{min(values):.3f}-{max(values):.3f}" if values else ""]
        peak = f"{max(self.gigabytes):.2f}" if self.gigabytes else ""
        return f"| {' | '.join([*cells, peak, str(len(self.seconds)), self.remark])} |"


HEADER = (
    "| what | seconds | min-max | ratio | min-max | peak GB | rounds | remark |\n"
    "| --- | --: | --: | --: | --: | --: | --: | --- |"
)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.3f}" if values else ""


def timed(work: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# Pairs ------------------------------------------------------------------------------------------------------


def predictions(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Members that are right on most samples and share some of their errors."""
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.randint(sizes.classes, (sizes.samples,), generator=generator)
    logits = torch.empty(sizes.members, sizes.samples, sizes.classes)
    common = torch.randn(sizes.samples, sizes.classes, generator=generator)
    common[torch.arange(sizes.samples), labels] += 4
    for member in logits:
        torch.randn(sizes.samples, sizes.classes, generator=generator, out=member)
        member += common
    return logits, labels


def alone(sizes: Sizes, what: str) -> None:
    """The work of a child: prints its seconds and its largest resident size, in bytes."""
    from mirepoix.diversity import jensen_shannon_matrix, measure_predictions

    logits, labels = predictions(sizes)
    if what == "ours":
        seconds = timed(lambda: measure_predictions(logits, labels))
    elif what == "loop":
        # A sample of all pairs, near and far.
        pairs = [(i, j) for i in range(sizes.members) for j in range(i + 1, sizes.members)]
        chosen = pairs[:: max(1, len(pairs) // sizes.pairs)][: sizes.pairs]
        seconds = timed(lambda: loop(logits, labels, chosen)) * len(pairs) / len(chosen)
    else:
        few = logits[:, : sizes.few_samples]
        seconds = timed(lambda: jensen_shannon_matrix(few)) * sizes.samples / few.shape[1]
    print(json.dumps({"seconds": seconds, "peak": _peak()}))


def loop(logits: Tensor, labels: Tensor, pairs: list[tuple[int, int]]) -> None:
    """Every measure of pairs by its own function, pair by pair."""
    from mirepoix import diversity

    predicted = logits.argmax(-1)
    correct = predicted == labels
    for i, j in pairs:
        two = slice(i, j + 1, j - i)  # a view of both
        for measure in (
            diversity.ratio_error,
            diversity.q_statistic,
            diversity.q_diversity,
            diversity.oracle_disagreement,
            diversity.double_fault,
            diversity.error_correlation,
        ):
            measure(correct[two])
        diversity.disagreement(predicted[two])
        diversity.agreement(predicted[two])
        diversity.normalised_difference(predicted[two], labels)
        diversity.kullback_leibler(logits[two])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_pairs(sizes: Sizes, rounds: int, quick: bool) -> Iterator[Row]:
    count = math.comb(sizes.members, 2)
    size = f"{sizes.members} members, {sizes.samples:,} samples, {sizes.classes} classes"
    input_size = 4 * sizes.members * sizes.samples * sizes.classes / 1e9
    rows = {
        "ours": Row(
            f"`measure_predictions`, {size}", remark=f"the logits are {input_size:.2f} GB of the peak"
        ),
        "loop": Row(f"pair by pair, {count:,} pairs", remark=f"{sizes.pairs} pairs measured, scaled to all"),
        "js": Row(
            "Jensen-Shannon, all pairs", remark=f"{sizes.few_samples:,} samples measured, scaled to all"
        ),
    }
    for _ in range(rounds):
        for name, row in rows.items():
            # A process of its own: the largest resident size never shrinks.
            command = [sys.executable, __file__, "--child", name, *(["--quick"] if quick else [])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            row.seconds.append(result["seconds"])
            if name == "ours":
                row.gigabytes.append(result["peak"] / 1e9)
            else:
                row.ratios.append(row.seconds[-1] / rows["ours"].seconds[-1])
            _tell(row)
    yield from rows.values()


# Topology ---------------------------------------------------------------------------------------------------


def clouds(points: int) -> tuple[Tensor, Tensor]:
    """Two views of the same objects."""
    generator = torch.Generator().manual_seed(SEED)
    objects = torch.randn(points, 16, generator=generator)
    first, second = (objects @ torch.randn(16, 64, generator=generator) for _ in range(2))
    return first.relu(), second.relu()


def measure_rtd(sizes: Sizes, rounds: int) -> Iterator[Row]:
    from mirepoix.landscape import rtd, rtd_lite

    p, q = clouds(sizes.points)
    size = f"{sizes.points:,} points"
    if find_spec("gudhi") is None:
        print("rtd was left out: it needs gudhi, pip install 'mirepoix[analysis]'.", file=sys.stderr)
    else:
        rtd(p[:8], q[:8])  # imports
        yield _repeat(f"`rtd`, {size}", rounds, lambda: rtd(p, q, engine="gudhi", subsets=1))
        yield _repeat(
            f"`rtd` with `simplex_tree`, {size}", rounds, lambda: rtd(p, q, engine="simplex_tree", subsets=1)
        )
    many_p, many_q = clouds(sizes.lite_points)
    yield _repeat(
        f"`rtd_lite`, {sizes.lite_points:,} points", rounds, lambda: rtd_lite(many_p, many_q, subsets=1)
    )


def _repeat(what: str, rounds: int, work: Callable[[], Any]) -> Row:
    row = Row(what)
    for _ in range(rounds):
        row.seconds.append(timed(work))
        _tell(row)
    return row


# The way between weights ------------------------------------------------------------------------------------


def measure_path(sizes: Sizes, rounds: int) -> Iterator[Row]:
    from mirepoix.landscape import connect
    from mirepoix.models import NetworkSpec

    spec = NetworkSpec(name="cifar_resnet20", classes=10)
    network = spec.build().eval()
    ends = [
        {name: value.clone() for name, value in spec.build(seed=seed).state_dict().items()} for seed in (0, 1)
    ]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(sizes.images, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (sizes.images,), generator=generator)

    @torch.inference_mode()
    def score(theta: Any) -> Tensor:
        network.load_state_dict({name: torch.as_tensor(value) for name, value in theta.items()})
        logits = torch.cat([network(part).logits for part in images.split(256)])
        return (logits.argmax(-1) == labels).double()

    score(ends[0])
    bare, ours = Row(f"11 evaluations of a ResNet-20 on {sizes.images:,} images"), Row("`connect`, 11 points")
    for number in range(rounds):
        sides = [
            (bare, lambda: [score(ends[0]) for _ in range(11)]),
            (ours, lambda: connect(ends, score, higher_is_better=True, points=11)),
        ]
        for row, work in sides if number % 2 else reversed(sides):
            row.seconds.append(timed(work))
        ours.ratios.append(ours.seconds[-1] / bare.seconds[-1])
        _tell(ours)
    yield from (bare, ours)


# The command line -------------------------------------------------------------------------------------------


def _tell(row: Row) -> None:
    ratio = f", x {row.ratios[-1]:.3f}" if row.ratios else ""
    print(f"  {row.what}: {row.seconds[-1]:.3f} s{ratio}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
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
    }


PARTS = ("pairs", "rtd", "path")


def main() -> None:
    """Measure what the command line asks for and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--quick", action="store_true", help="see that it works; no numbers to report")
    parser.add_argument("--child", choices=("ours", "loop", "js"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes, rounds = (QUICK, 1) if options.quick else (Sizes(), options.rounds)
    if options.child:
        alone(sizes, options.child)
        return

    works: dict[str, Callable[[], Iterator[Row]]] = {
        "pairs": lambda: measure_pairs(sizes, rounds, options.quick),
        "rtd": lambda: measure_rtd(sizes, rounds),
        "path": lambda: measure_path(sizes, rounds),
    }
    started, load = time.monotonic(), os.getloadavg()[0]
    tables = {}
    for part in PARTS:
        if part in options.part:
            print(part, file=sys.stderr)
            tables[part] = list(works[part]())
    seconds = time.monotonic() - started

    machine_now = machine()
    command = " ".join(["python", *sys.argv])
    print(f"`{command}`: {seconds:.0f} s; load before it: {load:.1f}, after: {os.getloadavg()[0]:.1f}.\n")
    print(", ".join(f"{name} {value}" for name, value in machine_now.items()))
    for part, rows in tables.items():
        print(f"\n{part}\n")
        print("\n".join([HEADER, *(row.markdown() for row in rows)]))
    if options.json:
        result = {
            "command": command,
            "machine": machine_now,
            "seconds": seconds,
            "load": load,
            "tables": {part: [asdict(row) for row in rows] for part, rows in tables.items()},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
