"""Whole processes that merge checkpoints, against the reading and writing that no program can do without.

What is compared takes turns (A, B, A, B, ...), start-up included, with the inputs in the page cache. Times are
medians over the turns; ratios are medians of the ratios turn by turn. Peak memory is the largest resident size
of a process (``wait4``), with mapped pages of files, as the system counts it: a reader that maps its inputs
shows them. Five parts, each a table:

``soup``
    8 float32 checkpoints of ResNet-50 into one: `mirepoix soup`, loops of torch, mergekit's raw linear merge.
``members``
    2, 8, 16 and 64 members: the time per member, and memory that does not grow with them.
``formats``
    bfloat16, ``.pt``, and with ``--large`` two float32 files of 3 GB.
``rules``
    Other rules against the average of as many members.
``start``
    `mirepoix check` on 20 files, and the start of a process.

The floor reads all members with `cat` and writes one with `dd`, without and with waiting for the disk
(``fsync``), which `mirepoix` and no other program here does. Afterwards every mean is compared with one taken
in float64 (float32 for bfloat16) and rounded once: where that of mirepoix has other bits, the run fails.

Inputs and results take up to 8 GB in the folder, 18 with ``--large``, which is better kept on a disk.

    python benchmarks/merging.py --mergekit ENVIRONMENT/bin/python     # 9 turns; about 15 minutes on 2 cores
    python benchmarks/merging.py --part soup --folder /dev/shm --repeats 5 --json result.json
"""

from __future__ import annotations

# The process that measures stays small, without NumPy and torch: until a child loads its own program it counts
# as large as its parent, and that stays in its peak. Inputs are made, and results compared, in processes too.
import argparse
import itertools
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

READ = "`cat` to /dev/null"
WRITE = "`cat`, then write one"
SYNC = "`cat`, then write one, with fsync"
OURS = "`mirepoix soup`"
SUM_32 = "torch, `safe_open`, float32 sums"
SUM_64 = "torch, `safe_open`, float64 sums"
LOAD = "`torch.load` one by one"
MERGEKIT = "mergekit, raw linear"
AVERAGE = "average"


@dataclass
class Row:
    """One program on one set of inputs.

    Attributes:
        inputs: What is read, in words; ratios are taken between rows with the same words.
        program: What reads it.
        command: How to run it.
        out: What it writes, removed before every turn.
        members: Files whose mean it should have written; none where it computes something else.
        count: Number of members, for the time of one.
        optional: Leave it out, with a message, when it fails.
        seconds: On the wall, turn by turn.
        processor: Seconds of processors, of all threads together.
        peaks: Largest resident size in bytes.
        differing: Share of the float entries that are not those of the mean, and the largest difference.
    """

    inputs: str
    program: str
    command: Sequence[str]
    out: Path | None = None
    members: Sequence[Path] = ()
    count: int = 0
    optional: bool = False
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    differing: tuple[float, float] | None = None

    def ratio(self, other: Row) -> float:
        """Median of the ratios of times, turn by turn."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def result(self) -> str:
        """How the mean compares, in words."""
        if self.differing is None:
            return ""
        share, most = self.differing
        return (
            "the mean, rounded once" if share == 0 else f"{share:.1%} of entries off, by {most:.1e} at most"
        )


@dataclass
class Table:
    """What is measured together.

    Attributes:
        part: Its name on the command line.
        title: What it shows.
        rows: The programs, in the order of their turns.
        against: Columns of ratios: heading, and the program in the same inputs that is divided by.
        per_member: Show the time per member.
        notes: What was left out, and why.
    """

    part: str
    title: str
    rows: list[Row]
    against: Mapping[str, str]
    per_member: bool = False
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        head = ["inputs", "program", "seconds", "min-max", "processor s", *self.against, "peak MB"]
        head += ["ms per member"] * self.per_member
        compared = any(row.differing for row in self.rows)
        head += ["result"] * compared
        lines = [head, ["---", "---", *["--:"] * (len(head) - 2 - compared), *["---"] * compared]]
        for row in self.rows:
            median = statistics.median(row.seconds)
            cells = [row.inputs, row.program, f"{median:.3f}"]
            cells.append(f"{min(row.seconds):.3f}-{max(row.seconds):.3f}")
            cells.append(f"{statistics.median(row.processor):.2f}")
            beside = {other.program: other for other in self.rows if other.inputs == row.inputs}
            for program in self.against.values():
                other = beside.get(program)
                cells.append("" if other is None else f"{row.ratio(other):.2f}")
            # What needs less than the process that starts it shows the size of that one.
            peak, seen = statistics.median(row.peaks), own_peak()
            cells.append(f"{peak / 1e6:.0f}" if peak > 1.02 * seen else f"< {seen / 1e6:.0f}")
            if self.per_member:
                cells.append(f"{1000 * median / row.count:.1f}")
            lines.append([*cells, row.result()] if compared else cells)
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return "\n\n".join([f"**{self.part}**: {self.title}", text, *self.notes])


def own_peak() -> int:
    """The largest resident size of this process, in bytes."""
    return peak_bytes(resource.getrusage(resource.RUSAGE_SELF))


def peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Processes --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """As on a user's machine, where Python keeps what it compiled."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def run(row: Row) -> str | None:
    """One turn of a program: None and a measurement more, or what it said when it failed."""
    remove(row.out)
    os.sync()  # what the last program left to the disk is not this one's
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = subprocess.Popen(row.command, stdout=subprocess.DEVNULL, stderr=said, env=environment())
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            return said.read().decode(errors="replace").strip() or f"exit code {child.returncode}"
    row.seconds.append(seconds)
    row.processor.append(usage.ru_utime + usage.ru_stime)
    row.peaks.append(peak_bytes(usage))
    if not row.members:
        remove(row.out)  # nothing will be compared with it, and memory may be what holds it
    return None


def remove(out: Path | None) -> None:
    """A result, and the record that mirepoix writes beside it."""
    if out is not None:
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
        out.with_suffix(".json").unlink(missing_ok=True)


def in_turns(table: Table, turns: int, warm: bool) -> None:
    """Run all rows, one after the other in every turn; a turn to warm up is not counted."""
    for turn in range(turns + warm):
        for row in list(table.rows):
            error = run(row)
            if error is not None and not row.optional:
                raise SystemExit(f"{row.program} on {row.inputs} failed:\n{shlex.join(row.command)}\n{error}")
            if error is not None:
                table.rows.remove(row)
                table.notes.append(f"{row.program} was left out, it failed: {error.splitlines()[-1][:300]}")
                continue
            counted = f"turn {turn + 1 - warm}/{turns}" if turn >= warm else "warm-up"
            print(f"  {counted}  {row.inputs}, {row.program}: {row.seconds[-1]:.3f} s", file=sys.stderr)
            if turn < warm:
                for kept in (row.seconds, row.processor, row.peaks):
                    kept.clear()


def step(name: str, *arguments: object) -> list[str]:
    """The command of one of the steps below."""
    return [sys.executable, __file__, "--step", name, *map(str, arguments)]


def ask(name: str, *arguments: object) -> Any:
    """What a step prints."""
    done = subprocess.run(step(name, *arguments), stdout=subprocess.PIPE, env=environment())
    if done.returncode:
        raise SystemExit(f"could not {name} the files; see above.")
    return json.loads(done.stdout or "null")


# Steps: what runs in a process of its own -------------------------------------------------------------------


def make(folder: str, network: str, dtype: str, suffix: str, counters: str, count: str) -> None:
    """Write ``count`` members around one start, and that start, with the layout of a network."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    if network == "large":
        layout = {"embed": torch.empty(32_000, 4096, device="meta")}
        layout |= {f"layers.{i}": torch.empty(4096, 4096, device="meta") for i in range(37)}
    elif network == "tiny":
        layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 300)
        layout = torch.nn.Sequential(*layers).state_dict()
    else:
        import timm

        layout = timm.create_model(network).state_dict()
    first = 1 if network == "large" else 0  # member 0 is the start
    for member in range(first, int(count) + 1):
        theta = {}
        for position, (name, like) in enumerate(layout.items()):
            if not like.is_floating_point():
                theta[name] = torch.tensor(1000 + (member if counters == "differ" else 0))
                continue
            x = np.random.default_rng([0, position]).standard_normal(like.shape, np.float32)
            if member:
                x += 0.1 * np.random.default_rng([member, position]).standard_normal(like.shape, np.float32)
            x *= np.float32(0.02)
            theta[name] = torch.from_numpy(np.abs(x) if name.endswith("running_var") else x)
            theta[name] = theta[name].to(getattr(torch, dtype))
        file = Path(folder, f"m{member - 1:02d}{suffix}" if member else f"base{suffix}")
        torch.save(theta, file) if suffix == ".pt" else save_file(theta, file)


def torch_loop(sums: str, out: str, *files: str) -> None:
    """The mean as one writes it with torch: file by file, in a running sum; the last counter stays."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    total: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it cannot be iterated)
                x = opened.get_tensor(name)
                if not x.is_floating_point():
                    total[name], dtypes[name] = x, x.dtype
                elif name in total:
                    total[name].add_(x)
                else:
                    total[name], dtypes[name] = x.to(getattr(torch, sums), copy=True), x.dtype
    for name, x in total.items():
        total[name] = x.div_(len(files)).to(dtypes[name]) if x.is_floating_point() else x
    save_file(total, out)


def torch_load(out: str, *files: str) -> None:
    """The mean of files of torch, one loaded after the other."""
    import torch

    total: dict[str, torch.Tensor] = {}
    for file in files:
        for name, x in torch.load(file, map_location="cpu", weights_only=True).items():
            if name in total and x.is_floating_point():
                total[name].add_(x)
            else:
                total[name] = x
    torch.save({name: x.div_(len(files)) if x.is_floating_point() else x for name, x in total.items()}, out)


def compare(members: str, outs: str) -> None:
    """Print, for every result, the share of entries that are not the mean rounded once, and by how much."""
    import numpy as np
    import torch
    from safetensors import safe_open

    def reader(file: str) -> Callable[[str], torch.Tensor]:
        if file.endswith(".pt"):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True).__getitem__
        return safe_open(file, "pt").get_tensor

    opened = [reader(file) for file in json.loads(members)]
    results = [reader(file) for file in json.loads(outs)]
    with safe_open(json.loads(outs)[0], "pt") as first:
        names = list(first.keys())
    entries, off, most = 0, [0] * len(results), [0.0] * len(results)
    for name in names:
        like = opened[0](name)
        if not like.is_floating_point():
            continue
        if like.dtype == torch.float32:
            total = np.zeros(tuple(like.shape))
            for read in opened:
                total += read(name).numpy()
            mean = torch.from_numpy(np.asarray((total / len(opened)).astype(np.float32)))
        else:
            mean = (sum(read(name).float() for read in opened) / len(opened)).to(like.dtype)
        entries += mean.numel()
        bits = torch.int32 if mean.dtype == torch.float32 else torch.int16
        for number, read in enumerate(results):
            x = read(name)
            if (x.dtype, x.shape) != (mean.dtype, mean.shape):
                raise SystemExit(f"{name}: expected {mean.dtype} {mean.shape}, got {x.dtype} {x.shape}.")
            off[number] += int((x.view(bits) != mean.view(bits)).sum())
            most[number] = max(most[number], float((x.double() - mean.double()).abs().max()))
    print(json.dumps([(wrong / entries, largest) for wrong, largest in zip(off, most, strict=True)]))


STEPS = {"make": make, "torch-loop": torch_loop, "torch-load": torch_load, "compare": compare}


# Tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where inputs and results lie, and what is at hand.

    Attributes:
        folder: Holds everything.
        tiny: Small inputs, to see that it works.
        mergekit: The Python of an environment with mergekit.
        number: Of the next result.
    """

    folder: Path
    tiny: bool
    mergekit: Path | None
    number: Iterator[int] = field(default_factory=itertools.count)

    def members(
        self, count: int, dtype: str = "float32", suffix: str = ".safetensors", agree: bool = False
    ) -> list[Path]:
        """Members of a ResNet-50, made when they are first asked for."""
        network = "tiny" if self.tiny else "resnet50"
        return self._made(network, count, dtype, suffix, "agree" if agree else "differ")

    def large(self) -> list[Path]:
        """Two files of 3 GB."""
        return self._made("tiny" if self.tiny else "large", 2, "float32", ".safetensors", "large")

    def _made(self, network: str, count: int, dtype: str, suffix: str, counters: str) -> list[Path]:
        folder = self.folder / f"{count}-{dtype}{suffix}-{counters}"
        if not folder.exists():
            print(f"writing {count} members, {dtype} {suffix}", file=sys.stderr)
            folder.mkdir()
            ask("make", folder, network, dtype, suffix, counters, count)
        return sorted(folder.glob("m*"))

    @property
    def results(self) -> Path:
        """Where results go; never beside inputs."""
        return self.folder / "results"

    def out(self, suffix: str = ".safetensors") -> Path:
        """A result of its own for every row."""
        self.results.mkdir(exist_ok=True)
        return self.results / f"{next(self.number):03d}{suffix}"

    def floors(self, inputs: str, members: Sequence[Path]) -> list[Row]:
        """What no program can do without: reading, reading and writing, and waiting for the disk."""
        read = f"cat {shlex.join(map(str, members))} > /dev/null"
        rows = [Row(inputs, READ, ["sh", "-c", read], count=len(members))]
        for program, wait in ((WRITE, ""), (SYNC, " conv=fsync")):
            out = self.out()
            write = f"dd if={shlex.quote(str(members[0]))} of={shlex.quote(str(out))} bs=1M status=none{wait}"
            rows.append(Row(inputs, program, ["sh", "-c", f"{read} && {write}"], out, count=len(members)))
        return rows

    def soup(
        self, inputs: str, members: Sequence[Path], *options: object, program: str = OURS, mean: bool = True
    ) -> Row:
        out = self.out()
        command = [mirepoix(), "soup", *map(str, members), "-o", str(out), *map(str, options)]
        return Row(inputs, program, command, out, members if mean else (), len(members))

    def loop(self, inputs: str, members: Sequence[Path], sums: str) -> Row:
        out = self.out()
        command = step("torch-loop", sums, out, *members)
        program = SUM_32 if sums == "float32" else SUM_64
        return Row(inputs, program, command, out, members, len(members), optional=True)

    def load(self, inputs: str, members: Sequence[Path], kept: Sequence[Path] = ()) -> Row:
        out = self.out(".pt")
        command = step("torch-load", out, *members)
        return Row(inputs, LOAD, command, out, kept or members, len(members), optional=True)

    def raw_linear(self, inputs: str, members: Sequence[Path], kept: Sequence[Path]) -> Row:
        """mergekit on files that agree in their counters, which it asks for."""
        assert self.mergekit is not None
        recipe, out = self.folder / "linear.yml", self.out("")
        models = [{"model": str(member), "parameters": {"weight": 1.0}} for member in members]
        recipe.write_text(json.dumps({"merge_method": "linear", "dtype": "float32", "models": models}))
        code = "from mergekit.scripts.merge_raw_pytorch import main; main()"
        command = [str(self.mergekit), "-c", code, str(recipe), str(out), "--quiet"]
        return Row(inputs, MERGEKIT, command, out, kept, len(members), optional=True)


def mirepoix() -> str:
    """The command of this environment."""
    beside = Path(sys.executable).with_name("mirepoix")
    found = str(beside) if beside.exists() else shutil.which("mirepoix")
    if found is None:
        raise SystemExit("mirepoix is not installed in this environment; `uv sync` puts it there.")
    return found


def size(files: Iterable[Path]) -> str:
    """How many files of how many bytes."""
    sizes = [file.stat().st_size for file in files]
    middle = statistics.median(sizes)
    return (
        f"{len(sizes)} x {middle / 1e6:.3g} MB" if middle < 1e9 else f"{len(sizes)} x {middle / 1e9:.3g} GB"
    )


AGAINST = {"x floor": WRITE, "x floor with fsync": SYNC, "x mirepoix": OURS}


def soup_table(bench: Bench) -> Table:
    members = bench.members(8)
    inputs = f"{size(members)} float32"
    rows = [*bench.floors(inputs, members), bench.soup(inputs, members)]
    rows += [bench.loop(inputs, members, "float32"), bench.loop(inputs, members, "float64")]
    rows.append(bench.load(inputs, bench.members(8, suffix=".pt"), members))
    notes = []
    if bench.mergekit is None:
        notes.append(f"{MERGEKIT} was left out: name the Python of an environment with it by --mergekit.")
    else:
        rows.append(bench.raw_linear(inputs, bench.members(8, agree=True), members))
        notes.append(
            "mergekit got copies whose `num_batches_tracked` agree, as it refuses others; `torch.load` the same "
            "weights as `.pt`, and wrote `.pt`."
        )
    return Table("soup", "one mean of eight ResNet-50s.", rows, AGAINST, notes=notes)


def members_table(bench: Bench) -> Table:
    eight = bench.members(8)
    rows = []
    for count in (2, 8, 16, 64):
        linked = eight[:count]
        if count > len(eight):
            folder = bench.folder / f"{count}-links"
            folder.mkdir()
            linked = [folder / f"m{number:02d}.safetensors" for number in range(count)]
            for number, file in enumerate(linked):
                file.hardlink_to(eight[number % len(eight)])
        inputs = size(linked)
        rows += [*bench.floors(inputs, linked)[1:], bench.soup(inputs, linked)]
    title = "more members of the same size; above eight, other names of the same files."
    return Table("members", title, rows, AGAINST, per_member=True)


def formats_table(bench: Bench, large: bool) -> Table:
    rows = []
    halves, pickled = bench.members(8, dtype="bfloat16"), bench.members(8, suffix=".pt")
    inputs = f"{size(halves)} bfloat16"
    rows += [*bench.floors(inputs, halves)[1:], bench.soup(inputs, halves)]
    rows.append(bench.loop(inputs, halves, "float32"))
    inputs = f"{size(pickled)} `.pt`"
    rows += [*bench.floors(inputs, pickled)[1:], bench.soup(inputs, pickled)]
    rows.append(bench.load(inputs, pickled))
    if large:
        pair = bench.large()
        inputs = f"{size(pair)} float32"
        rows += [*bench.floors(inputs, pair)[1:], bench.soup(inputs, pair)]
        rows.append(bench.loop(inputs, pair, "float32"))
    return Table("formats", "other dtypes, files and sizes.", rows, AGAINST)


def rules_table(bench: Bench) -> Table:
    eight = bench.members(8)
    base = ("--base", eight[0].with_name("base.safetensors"))
    share = ",".join(["0.3"] * 8)
    inputs, both = size(eight), size(eight[:2])
    methods: dict[str, tuple[object, ...]] = {
        "task-arithmetic": (*base, "--coefficients", share),
        "ties": (*base, "--scope", "global"),
        "dare": (*base, "--coefficients", share, "--seed", "0"),
        "model-stock": base,
    }
    rows = [*bench.floors(inputs, eight)[1:], bench.soup(inputs, eight, program=AVERAGE)]
    for name, options in methods.items():
        rows.append(bench.soup(inputs, eight, "-m", name, *options, program=name, mean=False))
    rows += [*bench.floors(both, eight[:2])[1:], bench.soup(both, eight[:2], program=AVERAGE)]
    rows.append(bench.soup(both, eight[:2], "-m", "slerp", "--t", "0.5", program="slerp", mean=False))
    against = {"x floor": WRITE, "x floor with fsync": SYNC, "x average": AVERAGE}
    return Table("rules", "other rules; all but average and slerp also read the base.", rows, against)


def start_table(bench: Bench) -> Table:
    twenty = bench.members(20)
    inputs = size(twenty)
    bare = "`python -c pass`"
    rows = bench.floors(inputs, twenty)[:1]
    rows.append(
        Row(inputs, "`mirepoix check`", [mirepoix(), "check", *map(str, twenty)], count=20, optional=True)
    )
    rows.append(Row("none", bare, [sys.executable, "-c", "pass"]))
    rows.append(Row("none", "`import numpy`", [sys.executable, "-c", "import numpy"]))
    rows.append(Row("none", "`import torch`", [sys.executable, "-c", "import torch"]))
    rows.append(Row("none", "`mirepoix --help`", [mirepoix(), "--help"]))
    return Table("start", "what is there before any work.", rows, {"x `cat`": READ, "x python": bare})


def check_results(table: Table) -> None:
    """Compare what the last turn wrote with the mean, inputs by inputs.

    Raises:
        SystemExit: When a mean of mirepoix, or a torch loop with float64 sums, is not rounded once.
    """
    groups: dict[tuple[Path, ...], list[Row]] = {}
    for row in table.rows:
        if row.members:
            groups.setdefault(tuple(row.members), []).append(row)
    for members, rows in groups.items():
        written = [
            row.out / "model.safetensors" if row.out is not None and row.out.is_dir() else row.out
            for row in rows
        ]
        found = ask("compare", json.dumps(list(map(str, members))), json.dumps(list(map(str, written))))
        for row, differing in zip(rows, found, strict=True):
            row.differing = tuple(differing)
            if row.differing[0] and row.program in (OURS, AVERAGE, SUM_64):
                raise SystemExit(
                    f"{row.program} on {row.inputs}: expected the mean rounded once: {row.result()}."
                )


# The command ------------------------------------------------------------------------------------------------


def machine(folder: Path, mergekit: Path | None) -> dict[str, Any]:
    """Where this runs."""
    model, facts = platform.machine(), Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    # A heading, then the kind.
    df = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True)
    kind = df.stdout.split()[-1] if df.returncode == 0 else "unknown"
    found = {
        "cores": os.cpu_count(),
        "threads of torch": os.environ.get("OMP_NUM_THREADS", "all"),
        "cpu": model,
        "files on": kind,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "safetensors")},
    }
    if mergekit is not None:
        code = "from importlib.metadata import version; print(version('mergekit'))"
        asked = subprocess.run([mergekit, "-c", code], capture_output=True, text=True)
        found["mergekit"] = asked.stdout.strip() or "not there"
    return found


def busy_seconds() -> tuple[float, float]:
    """Seconds of processors: of all programs since the machine started, and of this one with its children."""
    file = Path("/proc/stat")
    if not file.exists():
        return 0.0, 0.0
    user, nice, system, _idle, _wait, *rest = map(int, file.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


PARTS: dict[str, Callable[[Bench], Table]] = {
    "soup": soup_table,
    "members": members_table,
    "formats": lambda bench: formats_table(bench, large=False),
    "rules": rules_table,
    "start": start_table,
}


def main() -> None:
    """Measure what the command line asks for and print the tables."""
    if sys.argv[1:2] == ["--step"]:
        return STEPS[sys.argv[2]](*sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--folder", type=Path, help="where inputs and results lie for a while")
    parser.add_argument("--repeats", type=int, default=9, help="turns counted; one more warms up")
    parser.add_argument("--mergekit", type=Path, help="the Python of an environment with mergekit")
    parser.add_argument("--large", action="store_true", help="with two files of 3 GB, in the part formats")
    parser.add_argument("--json", type=Path, help="also write every turn to this file")
    parser.add_argument("--tiny", action="store_true", help="see that it works; no numbers to report")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, got {options.repeats}.")
    parts = {**PARTS, "formats": lambda bench: formats_table(bench, options.large)}
    if options.part != "all":
        parts = {options.part: parts[options.part]}
    everyone, us = busy_seconds()
    started = time.monotonic()
    tables = []
    with tempfile.TemporaryDirectory(prefix="mirepoix-benchmark-", dir=options.folder) as temporary:
        bench = Bench(Path(temporary), options.tiny, options.mergekit)
        facts = machine(bench.folder, options.mergekit)
        for name, make_table in parts.items():
            table = make_table(bench)
            print(name, file=sys.stderr)
            in_turns(table, options.repeats, warm=not options.tiny)
            check_results(table)
            shutil.rmtree(bench.results, ignore_errors=True)
            tables.append(table)
    seconds = time.monotonic() - started
    everyone_after, us_after = busy_seconds()
    others = (everyone_after - everyone - (us_after - us)) / seconds / (os.cpu_count() or 1)

    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    print(
        f"{said}; {options.repeats} turns; {seconds:.0f} s, of whose processors others took {max(0, others):.0%}."
    )
    for table in tables:
        print("\n" + table.markdown())
    if options.json:
        kept = [asdict(table) for table in tables]
        result = {"machine": facts, "seconds": seconds, "others": others, "tables": kept}
        options.json.write_text(json.dumps(result, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
