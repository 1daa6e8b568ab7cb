import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mirepoix.landscape import connect, plot
from mirepoix.types import InputError


def ends(*values):
    return [{"w": np.array(value, dtype=float)} for value in values]


def square(weights):
    return float(np.sum(weights["w"] ** 2))


@pytest.fixture
def line():
    return connect(ends([-1.0], [1.0]), square, higher_is_better=True, points=5)


@pytest.fixture
def triangle():
    return connect(ends([1, 0, 0], [0, 1, 0], [0, 0, 1]), square, higher_is_better=True, points=4)


def texts(path):
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_a_line_shows_ends_label_and_barrier_in_the_unit_asked_for(line, tmp_path):
    plot(line, tmp_path / "a.svg", names=("first", "$second$"), label="accuracy, percent", scale=100)
    shown = texts(tmp_path / "a.svg")
    for text in ("first", "$second$", "chord", "accuracy, percent", "barrier 100"):
        assert text in shown


def test_a_triangle_shows_its_corners_and_the_worst(triangle, tmp_path):
    plot(triangle, tmp_path / "a.svg", names=("one", "two", "three"), label="loss")
    shown = texts(tmp_path / "a.svg")
    for text in ("one", "two", "three", "loss", "worst against the chord"):
        assert text in shown


def test_no_barrier_is_drawn_where_there_is_none(tmp_path):
    flat = connect(ends([0.0], [1.0]), lambda weights: 0.5, higher_is_better=True, points=3)
    plot(flat, tmp_path / "a.svg")
    assert "barrier" not in texts(tmp_path / "a.svg")


@pytest.mark.parametrize("corners", [2, 3])
def test_values_that_are_nan_are_left_out(corners, tmp_path):
    broken = connect(
        ends(*[[float(i)] for i in range(corners)]),
        lambda weights: math.nan if weights["w"][0] == 0.5 else 1.0,
        higher_is_better=True,
        points=5,
    )
    plot(broken, tmp_path / "a.svg")
    assert texts(tmp_path / "a.svg")


def test_the_same_connection_gives_the_same_bytes_and_settings_stay(line, triangle, tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        with matplotlib.rc_context({"font.size": 30} if "b" in name else {}):
            before = dict(matplotlib.rcParams)
            plot(line, tmp_path / f"line-{name}")
            plot(triangle, tmp_path / f"triangle-{name}")
            assert dict(matplotlib.rcParams) == before
    for kind in ("line", "triangle"):
        for ending in ("svg", "png"):
            first, second = ((tmp_path / f"{kind}-{name}.{ending}").read_bytes() for name in "ab")
            assert first == second


def test_png_is_an_image(line, tmp_path):
    plot(line, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300


def test_another_ending_and_a_missing_folder_are_errors(line, tmp_path):
    with pytest.raises(InputError, match=r"expected a name ending in .svg or .png, got '.pdf'"):
        plot(line, tmp_path / "a.pdf")
    with pytest.raises(InputError, match=r"does not exist\. Create it first"):
        plot(line, tmp_path / "nowhere" / "a.svg")
    assert not list(tmp_path.iterdir())
