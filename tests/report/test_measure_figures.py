"""The figures of measures: the numbers go in and come out, in a drawing, a picture and a table."""

import csv
import io
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mirepoix.report._figure_files import Drawn, png, write_figures
from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._measure_figures import draw_heatmap, draw_histogram, draw_plane, draw_scatter
from mirepoix.types import InputError


def symmetric(members, seed=0):
    half = np.random.default_rng(seed).random((members, members))
    return half + half.T


def heatmap(members=4, **more):
    names = [f"run-{i}" for i in range(members)]
    return draw_heatmap(symmetric(members), names, measure="ratio-error", **more)


def histogram(**more):
    return draw_histogram({"within": [0.1, 0.2, 0.3], "across": [0.5, 0.5]}, what="ratio-error", **more)


def scatter(**more):
    dots = {
        "ID": [(90.0, 0.5, "a, b"), (80.0, 0.7, "a, c")],
        "OOD": [(60.0, 0.9, "a, b"), (50.0, 1.0, "a, c")],
    }
    return draw_scatter(dots, x="accuracy, percent", y="ratio-error", **more)


def plane(**more):
    x, y = np.linspace(-1, 2, 7), np.linspace(-1, 1, 5)
    marks = {"A": (0.0, 0.0), "B": (1.0, 0.0), "C": (0.5, 0.8), "average": (0.5, 0.27)}
    return draw_plane(x, y, x[None] ** 2 + y[:, None], marks, what="loss", **more)


EVERY = [heatmap, histogram, scatter, plane]


def texts(plot: Plot) -> str:
    return " ".join("".join(ElementTree.fromstring(plot.svg(inline=False)).itertext()).split())


@pytest.mark.parametrize("make", EVERY)
def test_the_drawing_is_whole_in_both_themes_and_the_same_every_time(make):
    plot = make(title="OOD").plot
    assert "OOD" in texts(plot)
    page, file = plot.svg(inline=True), plot.svg(inline=False)
    ElementTree.fromstring(page)
    assert (page, file) == (make(title="OOD").plot.svg(inline=True), make(title="OOD").plot.svg(inline=False))
    for placeholder, light in COLORS.values():
        assert placeholder not in page + file
        assert light not in page or light == "#ffffff"
    drawn = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", page))
    assert {color for color in drawn if not color.startswith("var(--")} <= {"none"}, drawn


@pytest.mark.parametrize("make", EVERY)
def test_the_picture_has_the_colours_of_the_light_theme(make):
    data = png(make().plot)
    assert data == png(make().plot)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = make().plot.size
    assert picture.size == pytest.approx((width / 72 * 150, height / 72 * 150), abs=1)
    colors = np.asarray(picture).reshape(-1, 3).astype(int)
    assert tuple(colors[0]) == (255, 255, 255)
    # Nothing is left in a placeholder, whose red and green are 1.
    placeholders = (colors[:, 0] < 10) & (colors[:, 1] < 10)
    assert not placeholders.any()


def test_a_picture_is_that_of_the_drawing_whatever_the_settings_of_the_user(monkeypatch):
    import matplotlib as mpl

    before = png(heatmap().plot)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20}):
        assert png(heatmap().plot) == before


def test_a_heatmap_has_each_pair_twice_and_no_diagonal():
    matrix = symmetric(3)
    found = draw_heatmap(matrix, ["a", "b", "c"], measure="Q-diversity", write="{:.4f}".format)
    assert found.columns == ("first", "second", "value")
    assert len(found.rows) == 6
    for first, second, value in found.rows:
        i, j = "abc".index(first), "abc".index(second)
        assert value == matrix[i, j] == matrix[j, i]
    shown = texts(found.plot)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert shown.count(f"{matrix[i, j]:.4f}") == 2
    off = matrix[~np.eye(3, dtype=bool)]
    assert f"from {off.min():.4f} to {off.max():.4f}, mean {off.mean():.4f}" in found.plot.caption
    assert f"{matrix[0, 0]:.4f}" not in shown


def test_the_members_of_a_group_are_put_beside_each_other():
    matrix = symmetric(4)
    found = draw_heatmap(matrix, list("abcd"), measure="m", groups=["x", "y", "x", "y"])
    assert found.columns[3:] == ("first_group", "second_group")
    assert [row[0] for row in found.rows[::3]] == ["a", "c", "b", "d"]
    values = {row[:2]: row[2] for row in found.rows}
    assert values["a", "c"] == matrix[0, 2]
    assert values["d", "b"] == matrix[3, 1]
    assert {row[:2]: row[3:] for row in found.rows}["c", "b"] == ("x", "y")
    assert "Lines part the groups x, y." in found.plot.caption


def test_the_fullest_cell_is_the_largest_value():
    matrix = np.array([[0, 1, 2], [1, 0, 5.0], [2, 5, 0]])
    page = draw_heatmap(matrix, list("abc"), measure="m").plot.svg(inline=True)
    cells = re.findall(r'd="([^"]*)"[^>]*style="fill: var\(--average\); (?:fill-)?opacity: ([\d.]+)', page)
    assert [float(opacity) for _, opacity in cells] == pytest.approx(
        [0.08, 0.08 + 0.42 * 4 / 15, 0.5], abs=1e-3
    )
    assert all(path.count("M") == 2 for path, _ in cells)


def test_numbers_in_cells_can_be_read_in_both_themes():
    """By the contrast of WCAG 2.2, criterion 1.4.3."""
    style = files("mirepoix.report").joinpath("template.html").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part))
        for part in style.split("prefers-color-scheme: dark")[:2]
    )
    page = heatmap(9).plot.svg(inline=True)
    assert set(re.findall(r"<text[^>]*fill: var\(--(\w+)\)", page)) <= {"ink"}
    fullest = max(map(float, re.findall(r"fill: var\(--average\); (?:fill-)?opacity: ([\d.]+)", page)))

    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for theme in (light, dark):
        colour = {
            name: np.array([int(text[k : k + 2], 16) / 255 for k in (1, 3, 5)])
            for name, text in theme.items()
        }
        cell = fullest * colour["average"] + (1 - fullest) * colour["surface"]
        low, high = sorted((luminance(cell), luminance(colour["ink"])))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_what_is_not_finite_is_no_number():
    matrix = np.array([[0, np.inf, np.nan], [np.inf, 0, 0.25], [np.nan, 0.25, 0]])
    found = draw_heatmap(matrix, list("abc"), measure="m")
    shown = texts(found.plot)
    assert shown.count("∞") == 2
    assert "nan" not in shown
    assert "from 0.25 to 0.25" in found.plot.caption
    assert "Not finite: 2 pairs." in found.plot.caption
    assert math.isnan(next(row[2] for row in found.rows if row[:2] == ("a", "c")))
    nothing = draw_heatmap(np.full((3, 3), np.nan), list("abc"), measure="m")
    assert "no value is finite" in nothing.plot.alt
    ElementTree.fromstring(nothing.plot.svg(inline=True))


@pytest.mark.parametrize("members", [2, 10, 30])
def test_many_members_make_no_larger_drawing_than_few_levels(members):
    found = heatmap(members, name="h")
    page = found.plot.svg(inline=True)
    assert len(found.rows) == members * (members - 1)
    assert page.count("var(--average)") <= 2 * 16
    assert ("run-1" in texts(found.plot)) == (members <= 24)


def test_names_that_would_break_a_drawing_are_shown_as_they_are():
    found = draw_heatmap(symmetric(2), ["$x <b>&", "\x1b[31m"], measure="$m_1$")
    assert "$x <b>&" in texts(found.plot)
    assert "\x1b" not in found.plot.svg(inline=True)


def test_a_histogram_has_the_shares_of_each_group():
    series = {"within": [0.0, 0.0, 1.0, math.inf], "across": [2.0, math.nan]}
    found = draw_histogram(series, what="m", bins=2)
    assert found.columns == ("group", "value")
    assert [row[0] for row in found.rows] == ["within"] * 4 + ["across"] * 2
    assert [row[1] for row in found.rows][:5] == [0.0, 0.0, 1.0, math.inf, 2.0]
    assert "Within: mean 0.333 over 3 pairs; across: mean 2 over 1 pair." in found.plot.caption
    assert "Left out, as not finite: 2." in found.plot.caption
    from matplotlib.figure import Figure

    figure = Figure()
    found.plot.draw(figure)
    steps = [patch.get_data().values for patch in figure.axes[0].patches]
    # Edges 0, 1, 2; the last bin is closed on both sides.
    np.testing.assert_allclose(steps[0], [200 / 3, 100 / 3])
    np.testing.assert_allclose(steps[2], [0, 100])


def test_a_single_value_has_a_histogram():
    ElementTree.fromstring(draw_histogram({"pairs": [0.5]}, what="m").plot.svg(inline=True))
    with pytest.raises(InputError, match="at least one finite value of m"):
        draw_histogram({"pairs": [math.nan]}, what="m")


def test_a_scatter_tells_the_correlation_of_each_series():
    dots = {
        "ID": [(1.0, 3.0, "a"), (2.0, 2.0, "b"), (3.0, 1.0, "c"), (4.0, math.inf, "d")],
        "OOD": [(1.0, 1.0, "a")],
    }
    found = draw_scatter(dots, x="accuracy", y="m")
    assert found.columns == ("series", "name", "x", "y")
    assert len(found.rows) == 5
    assert found.rows[0] == ("ID", "a", 1.0, 3.0)
    assert "ID: 3 dots, correlation −1.00; OOD: 1 dot." in found.plot.caption
    assert "Left out, as not finite: 1." in found.plot.caption
    with pytest.raises(InputError, match="at least one dot with a finite accuracy and m"):
        draw_scatter({"ID": [(math.nan, 1.0, "a")]}, x="accuracy", y="m")


def test_a_plane_has_its_values_and_its_weights():
    found = plane()
    assert found.columns == ("x", "y", "value", "mark")
    assert len(found.rows) == 35 + 4
    for x, y, value, mark in found.rows[:35]:
        assert value == pytest.approx(x**2 + y)
        assert mark is None
    assert found.rows[-1] == (0.5, 0.27, None, "average")
    shown = texts(found.plot)
    assert all(mark in shown for mark in ("A", "B", "C", "average"))
    assert "from -1 to 5" in found.plot.caption
    page = found.plot.svg(inline=True)
    opacities = {float(text) for text in re.findall(r"var\(--average\); fill-opacity: ([\d.]+)", page)}
    assert len(opacities) >= 10
    values = np.ones((5, 7))
    values[0, 0] = math.nan
    flat = draw_plane(range(7), range(5), values, {}, what="loss")
    assert "Empty, as not finite: 1 place." in flat.plot.caption
    ElementTree.fromstring(flat.plot.svg(inline=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"expected a matrix of 3 × 3 for 3 members, got shape \(2, 2\)"):
        draw_heatmap(symmetric(2), list("abc"), measure="m")
    with pytest.raises(InputError, match="for 2 members in 1 groups"):
        draw_heatmap(symmetric(2), list("ab"), measure="m", groups=["x"])
    with pytest.raises(InputError, match=r"expected values of shape \(3, 2\), a row for each y"):
        draw_plane([0, 1], [0, 1, 2], np.zeros((2, 3)), {}, what="m")
    with pytest.raises(InputError, match="at least one finite value of m"):
        draw_plane([0, 1], [0, 1], np.full((2, 2), np.nan), {}, what="m")


# Files


def test_the_files_hold_the_drawing_the_picture_and_the_numbers(tmp_path):
    figures = [heatmap(name="pairs"), plane(name="plane")]
    written = write_figures(figures, tmp_path / "new" / "folder", parquet=True)
    assert [path.name for path in written[:6]] == [
        f"{name}.{end}" for name in ("pairs", "plane") for end in ("svg", "png", "csv")
    ]
    assert sorted(written) == sorted((tmp_path / "new" / "folder").iterdir())
    folder = tmp_path / "new" / "folder"
    assert (folder / "pairs.svg").read_text() == figures[0].plot.svg(inline=False)
    assert (folder / "plane.png").read_bytes() == png(figures[1].plot)
    for figure in figures:
        with (folder / f"{figure.plot.name}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == figure.columns
        for row, expected in zip(rows[1:], figure.rows, strict=True):
            assert row == ["" if value is None else str(value) for value in expected]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(folder / "plane.parquet")
    assert tuple(table.column_names) == figures[1].columns
    assert [tuple(row.values()) for row in table.to_pylist()] == list(figures[1].rows)


def test_equal_figures_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_figures([scatter(), histogram()], tmp_path / name, parquet=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_nothing_is_written_when_a_drawing_fails(tmp_path):
    def fail(figure):
        raise RuntimeError("no")

    bad = Drawn(Plot("bad", "why", "", "", (100, 100), fail), ("x",), ())
    with pytest.raises(RuntimeError):
        write_figures([histogram(), bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch):
    write_figures([histogram(name="a")], tmp_path, also={tmp_path / "page.html": "old"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(self, data):
        if ".b.csv" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    figures = [scatter(name="a"), histogram(name="b")]
    with pytest.raises(OSError, match="No space left"):
        write_figures(
            figures, tmp_path, parquet=True, also={tmp_path / "page.html": "new", tmp_path / "a.json": [1]}
        )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    write_figures(figures, tmp_path, also={tmp_path / "page.html": "new", tmp_path / "a.json": [1]})
    assert (tmp_path / "page.html").read_text() == "new"
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("names", [["a", "a"], ["a/b"], [".."], [""]])
def test_names_must_be_those_of_files(tmp_path, names):
    with pytest.raises(InputError, match="expected different names of letters"):
        write_figures([histogram(name=name) for name in names], tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_it_says_what_is_needed(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="Parquet needs pyarrow"):
        write_figures([histogram()], tmp_path, parquet=True)
    assert not list(tmp_path.iterdir())
