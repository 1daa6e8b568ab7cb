"""``mirepoix convert``: the same weights in a safe file, or as another library wants them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.merging._inputs import Source

__all__ = ["convert"]

STEP = 1 << 20  # entries converted together

Layout = dict[str, tuple[str, tuple[int, ...]]]  # dtype code and shape of each tensor written


class Loss(NamedTuple):
    """What rounding did to a tensor: values that changed, and those of them that became 0."""

    changed: int
    vanished: int


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="IN", help="A file of weights, or the folder of a model.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A .safetensors file; or .pt or .npz, to export.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Of all float tensors: float32, bfloat16, float16, float64.")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="Where the weights are in a torch file: state_dict, model, ...")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=NEW", help="Change names; may be repeated, and is applied in order."),
    ] = None,
    untie: Annotated[bool, typer.Option("--untie", help="Write tied weights once for each name.")] = False,
    max_shard: Annotated[str | None, typer.Option(help="Most bytes per file: 5GB.")] = None,
    allow_torch_load: Annotated[
        bool, typer.Option("--allow-torch-load", help="Let torch read old files (weights_only).")
    ] = False,
    allow_expand: Annotated[
        bool, typer.Option("--allow-expand", help="Accept tensors that repeat stored values (expand).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write weights again as safetensors, bit for bit unless --dtype is given; nothing in IN is run.

    Large files are streamed: memory does not grow with them (with .pt, and tensor by tensor with .npz, it does).
    """
    if out.suffix not in (".safetensors", ".pt", ".npz"):
        raise InputError(
            f"{out}: expected a name ending in .safetensors, .pt or .npz, got {out.suffix or 'no suffix'!r}. Rename it."
        )
    if max_shard is not None and out.suffix != ".safetensors":
        raise InputError(f"--max-shard: only .safetensors files come in shards, got {out}.")
    from mirepoix.checkpoints import open_weights, parse_size
    from mirepoix.cli._bytes import bytes_bar
    from mirepoix.merging._inputs import Source

    most = None if max_shard is None else parse_size(max_shard)
    theta = open_weights(
        checkpoint,
        framework="numpy",
        container=container,
        allow_torch_load=allow_torch_load,
        allow_expand=allow_expand,
    )
    with theta:
        source = Source(theta, str(checkpoint), dict(_pair(text) for text in rename or []))
        _refuse(out, theta.files, force)
        aliases = {} if untie else {name: held for name, held in source.tied.items() if name in source}
        layout = _layout(source, dtype, aliases)
        replaced = out.exists()
        losses: dict[str, Loss] = {}
        with bytes_bar("converting") as progress:
            write = {".safetensors": _write_safetensors, ".pt": _write_torch, ".npz": _write_numpy}[
                out.suffix
            ]
            files = write(source, layout, aliases, out, most, _Pieces(source, layout, losses, progress))
        _keep_record(theta, out, exact=dtype is None and not rename, replaced=replaced)
    done = {
        "in": str(checkpoint),
        "out": str(out),
        "files": {str(file): file.stat().st_size for file in files},
        "tensors": len(layout),
        "values": sum(math.prod(shape) for _, shape in layout.values()),
        "bytes": sum(_nbytes(code, shape) for code, shape in layout.values()),
        "aliases": aliases,
        "dtype": dtype,
        "exact": not losses,
        "losses": {name: loss._asdict() for name, loss in losses.items()},
    }
    typer.echo(json.dumps(done, ensure_ascii=False) if as_json else _summary(done, losses))


def _pair(text: str) -> tuple[str, str]:
    # The last equals sign parts them, so that a pattern may hold some.
    left, equals, right = text.rpartition("=")
    if not equals or not left:
        raise InputError(f"--rename: expected REGEX=NEW, got {text!r}.")
    return left, right


def _refuse(out: Path, inputs: tuple[Path, ...], force: bool) -> None:
    """Refuse to write over the input, and over anything else unless told to."""
    from mirepoix.checkpoints._stream import index_path

    if any(out.exists() and out.samefile(file) for file in inputs):
        raise InputError(f"{out}: is the file to convert. Name another one.")
    for file in (out, index_path(out)):
        if (file.exists() or file.is_symlink()) and not force:
            raise InputError(f"{file}: exists already. Name another file, or pass --force to replace it.")


def _layout(source: Source, dtype: str | None, aliases: Mapping[str, str]) -> Layout:
    from mirepoix.merging._inputs import FLOAT8, is_float
    from mirepoix.merging._plan import out_code

    code = out_code(dtype)
    layout: Layout = {}
    for name in source.names:
        if name in aliases:
            continue
        own = source.code(name)
        if code is not None and own.startswith("F8") and own not in FLOAT8:
            raise InputError(f"{source.label}: {name!r} is {own}, which cannot be read as {dtype}.")
        layout[name] = (code if code is not None and is_float(own) else own), source.shape(name)
    return layout


def _nbytes(code: str, shape: tuple[int, ...]) -> int:
    from mirepoix.checkpoints._tensors import DTYPES

    return math.prod(shape) * DTYPES[code][1]


class _Pieces:
    """The content of each tensor as it is written, piece by piece; notes what rounding changed."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        losses: dict[str, Loss],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.source, self.layout, self.losses, self.progress = source, layout, losses, progress
        self.total = sum(_nbytes(code, shape) for code, shape in layout.values())
        self.done = 0

    def of(self, name: str) -> Iterator[tuple[int, memoryview]]:
        """The first byte and the bytes of each piece."""
        code, shape = self.layout[name]
        own, count = self.source.code(name), math.prod(shape)
        for start in range(0, count, STEP):
            stop = min(start + STEP, count)
            stored = self.source.stored(name, start, stop)
            if own != code:
                stored = self._rounded(name, own, code, stored)
            data = memoryview(stored.data).cast("B")
            yield start * (_nbytes(code, shape) // count), data
            self.done += data.nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)

    def whole(self, name: str) -> Callable[[memoryview], None]:
        """Fills a buffer with the tensor."""

        def fill(buffer: memoryview) -> None:
            for start, data in self.of(name):
                buffer[start : start + data.nbytes] = data

        return fill

    def _rounded(self, name: str, own: str, code: str, stored: Any) -> Any:
        import numpy as np

        from mirepoix.checkpoints._tensors import DTYPES
        from mirepoix.merging._inputs import narrow, wide_dtype, widen

        dtype = wide_dtype([own, code])
        wide = widen(own, stored, np.empty(stored.size, dtype))
        rounded = narrow(code, wide)
        back = widen(code, rounded, np.empty(stored.size, dtype))
        over = np.isinf(back) & np.isfinite(wide)
        if over.any():
            raise InputError(
                f"{self.source.label}: {name!r} holds {wide[over][0]:.6g}, which is infinite as {DTYPES[code][0]}. "
                "Choose a dtype of wider range, such as bfloat16 or float32."
            )
        changed = (back != wide) & ~np.isnan(wide)
        if changed.any():
            before = self.losses.get(name, Loss(0, 0))
            vanished = int((changed & (back == 0)).sum())
            self.losses[name] = Loss(before.changed + int(changed.sum()), before.vanished + vanished)
        return rounded


def _write_safetensors(
    source: Source, layout: Layout, aliases: Mapping[str, str], out: Path, most: int | None, pieces: _Pieces
) -> tuple[Path, ...]:
    from mirepoix.checkpoints._layout import ALIASES
    from mirepoix.checkpoints._stream import WeightsWriter, index_path

    assert source.checkpoint is not None
    own = (ALIASES, "format")  # these speak of the file, not of the weights
    metadata = {key: text for key, text in source.checkpoint.metadata.items() if key not in own}
    if aliases:
        metadata[ALIASES] = json.dumps(aliases)
    old = _shards_of(index_path(out))
    with WeightsWriter(out, layout, metadata=metadata, max_shard=most) as writer:
        inputs = [file for file in source.checkpoint.files if file.exists()]
        for file in writer.files:
            if file.exists() and any(file.samefile(other) for other in inputs):
                raise InputError(f"{file}: is a file to convert. Name another OUT.")
        for name in layout:
            for start, data in pieces.of(name):
                writer.write(name, start, data)
    # What was replaced may have been one file and is now several, or the other way round.
    if len(writer.files) == 1:
        old.add(index_path(out))
    else:
        old.add(out)
    for file in old - {*writer.files, *inputs}:
        with suppress(FileNotFoundError):
            file.unlink()
    return tuple(writer.files)


def _shards_of(index: Path) -> set[Path]:
    """The files that the index of an earlier output names beside it."""
    if not index.is_file():
        return set()
    from mirepoix.checkpoints import read_json

    content = read_json(index)
    names = content.get("weight_map", {}) if isinstance(content, dict) else {}
    stem = index.name.removesuffix(".safetensors.index.json") + "-"
    own = {name for name in names.values() if isinstance(name, str) and name.startswith(stem)}
    return {index.parent / name for name in own if name == os.path.basename(name)}


def _write_torch(
    source: Source, layout: Layout, aliases: Mapping[str, str], out: Path, most: int | None, pieces: _Pieces
) -> tuple[Path, ...]:
    import torch

    from mirepoix.checkpoints import atomic_path
    from mirepoix.checkpoints._tensors import build

    theta: dict[str, Any] = {}
    for name in source.names:
        if name in layout:
            code, shape = layout[name]
            theta[name] = build(name, code, shape, pieces.whole(name), "torch")
    for name, held in aliases.items():
        theta[name] = theta[held]
    with atomic_path(out) as temporary:
        torch.save({name: theta[name] for name in source.names}, temporary)
    return (out,)


def _write_numpy(
    source: Source, layout: Layout, aliases: Mapping[str, str], out: Path, most: int | None, pieces: _Pieces
) -> tuple[Path, ...]:
    import zipfile

    import numpy as np

    from mirepoix.checkpoints import atomic_path
    from mirepoix.checkpoints._tensors import DTYPES, build

    for name, (code, _) in layout.items():
        if code == "BF16" or code.startswith("F8"):
            raise InputError(
                f"{source.label}: {name!r} is {DTYPES[code][0]}, which NumPy does not know. Pass --dtype float32."
            )
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
        for name in source.names:
            key = aliases.get(name, name)
            code, shape = layout[key]
            array = build(name, code, shape, pieces.whole(key), "numpy")
            # A fixed time (1980), so that equal weights give equal files.
            member = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return (out,)


def _keep_record(theta: Any, out: Path, exact: bool, replaced: bool) -> None:
    """The record goes with the weights while they are the same; that of replaced weights goes away."""
    from mirepoix.checkpoints import write_json
    from mirepoix.checkpoints._checkpoint import record_path

    place = record_path(out)
    if place.exists() and (not replaced or place in map(record_path, (*theta.files, theta.path))):
        return  # somebody else's file, or the input's own record
    try:
        record = theta.record if exact and out.suffix != ".npz" else None
    except InputError:
        record = None  # a JSON beside a file of weights need not be ours
    if record is not None:
        write_json(place, record)
    elif replaced:
        place.unlink(missing_ok=True)


def _summary(done: dict[str, Any], losses: dict[str, Loss]) -> str:
    from mirepoix.merging._findings import listed, size_text, tensors

    dtype = f" as {done['dtype']}" if done["dtype"] else ""
    lines = [f"{done['tensors']} tensors, {size_text(done['bytes'])}{dtype}: {listed(list(done['files']))}"]
    if done["aliases"]:
        lines.append(f"tied: {', '.join(f'{a} = {b}' for a, b in list(done['aliases'].items())[:5])}")
    if losses:
        changed, vanished = (sum(counts) for counts in zip(*losses.values(), strict=True))
        lines.append(
            f"note: {changed:,} of {done['values']:,} values were rounded in {tensors(list(losses))}"
            + (f", {vanished:,} of them to 0." if vanished else ".")
        )
    else:
        lines.append(
            "All values are the same, bit for bit." if not done["dtype"] else "No value was rounded."
        )
    return "\n".join(lines)
