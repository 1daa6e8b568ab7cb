"""Figures as files: the drawing for a page, the picture for a slide, and the numbers behind both."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirepoix.checkpoints import atomic_path, write_json
from mirepoix.report._figures import _RC, COLORS, Plot, _inches
from mirepoix.types import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "check_folder", "png", "write_figures"]

DPI = 150


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and the numbers that are seen in it.

    Attributes:
        plot: The drawing.
        columns: Names of the columns.
        rows: One per mark, or per number behind it; texts, numbers and ``None``.
    """

    plot: Plot
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def check_folder(folder: Path | None, *, parquet: bool) -> None:
    """Whether figures could be written, before what takes long.

    Raises:
        InputError: Where a file stands for the folder; for Parquet without a folder or without pyarrow.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: expected the name of a folder, got a file. Choose another.")
    if parquet and folder is None:
        raise InputError("--parquet: goes with --out only, the folder to write to.")
    if parquet:
        _pyarrow()


def write_figures(
    figures: Iterable[Drawn],
    folder: str | os.PathLike[str],
    *,
    parquet: bool = False,
    also: Mapping[Path, Any] | None = None,
) -> list[Path]:
    """Write ``NAME.svg``, ``NAME.png`` and ``NAME.csv`` for each figure, all of them or none.

    All is drawn, and written under other names, before any file is replaced: a disk that is full changes nothing. The
    picture is in the light theme. Equal figures give equal bytes.

    Args:
        figures: Of different names.
        folder: Made if it does not exist.
        parquet: Write ``NAME.parquet`` too, for which pyarrow is needed.
        also: What belongs to the figures, by its file: a text, or else a value that is written as JSON.

    Returns:
        The files of the figures.

    Raises:
        InputError: For a name that comes twice, or that is no name of a file; without pyarrow.
    """
    figures, folder = list(figures), Path(folder)
    names = [figure.plot.name for figure in figures]
    for number, name in enumerate(names):
        if name in names[:number] or not re.fullmatch(r"[\w.-]*\w", name):
            raise InputError(
                f"figures: expected different names of letters, digits, '_' and '-', got {names}."
            )
    if parquet:
        _pyarrow()
    contents: dict[Path, bytes | str] = {}
    for figure in figures:
        contents[folder / f"{figure.plot.name}.svg"] = figure.plot.svg(inline=False)
        contents[folder / f"{figure.plot.name}.png"] = png(figure.plot)
        contents[folder / f"{figure.plot.name}.csv"] = _csv(figure)
    tables = {folder / f"{figure.plot.name}.parquet": figure for figure in figures if parquet}
    with ExitStack() as stack:

        def place(path: Path) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(atomic_path(path))

        # Names are given at the end, those of the figures first.
        for path, value in (also or {}).items():
            temporary = place(path)
            if isinstance(value, str):
                temporary.write_text(value, encoding="utf-8", newline="")
            else:
                write_json(temporary, value)
        for path, figure in tables.items():
            _write_parquet(figure, place(path))
        for path, content in contents.items():
            place(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return [*contents, *tables]


def png(plot: Plot) -> bytes:
    """The drawing as a picture: the light theme on white, 150 dots per inch.

    Args:
        plot: Any figure of a report.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    light = {name: value for name, (_, value) in COLORS.items()}
    # Settings of the user must not change the bytes.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
        settings: Any = {
            **_RC,
            **dict.fromkeys(inks, light["ink"]),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), light["muted"]),
            "grid.color": light["line"],
        }
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=_inches(plot.size), layout="constrained", facecolor=light["surface"])
        plot.draw(figure)
        _lighten(figure)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _lighten(figure: Figure) -> None:
    """Give every artist that is drawn in a placeholder its colour in the light theme."""
    from matplotlib.colors import to_rgb, to_rgba

    lights = {to_rgb(placeholder): to_rgb(light) for placeholder, light in COLORS.values()}

    def one(color: Any) -> Any:
        red, green, blue, alpha = to_rgba(color)
        return (*lights.get((red, green, blue), (red, green, blue)), alpha)

    kinds = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
    artists = figure.findobj()
    artists += [
        box for text in artists if (box := getattr(text, "get_bbox_patch", lambda: None)()) is not None
    ]
    for artist in artists:
        found: dict[Callable[[Any], None], Any] = {}
        for kind in kinds:
            get, put = (getattr(artist, f"{verb}_{kind}", None) for verb in ("get", "set"))
            if get is not None and put is not None:
                found[put] = get()
        for put, value in found.items():
            several = not isinstance(value, str) and len(value) > 0 and hasattr(value[0], "__len__")
            if several and not isinstance(value[0], str):
                put([one(each) for each in value])
            elif isinstance(value, str) and value in ("none", "auto"):
                continue
            elif len(value):
                put(one(value))


def _csv(figure: Drawn) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(figure.columns)
    writer.writerows(figure.rows)
    return buffer.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            "Parquet needs pyarrow: pip install pyarrow. The .csv has the same numbers."
        ) from None
    return pyarrow


def _write_parquet(figure: Drawn, path: Path) -> None:
    pyarrow = _pyarrow()
    columns: Sequence[Sequence[Any]] = list(zip(*figure.rows, strict=True)) or [()] * len(figure.columns)
    table = pyarrow.table(dict(zip(figure.columns, map(list, columns), strict=True)))
    pyarrow.parquet.write_table(table, path)
