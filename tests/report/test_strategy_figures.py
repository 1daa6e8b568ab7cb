from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mirepoix.evidence._figures import (
    accuracy_against_members,
    accuracy_against_share,
    accuracy_against_tasks,
    gain_against_diversity,
    interpolation_curve,
)
from mirepoix.report import _strategy_figures as module
from mirepoix.report._figures import COLORS, Plot
from mirepoix.report._strategy_figures import (
    draw_accuracy_against_members,
    draw_accuracy_against_share,
    draw_accuracy_against_tasks,
    draw_gain_against_diversity,
    draw_interpolation_curve,
    draw_slope_against_members,
)


def point(mean: float | None, error: float | None = None, subsets: int = 5, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "error": error, "subsets": subsets, **more}


def members(**more: Any) -> dict[str, Any]:
    runs = [point(0.6, 0.01, members=1), point(0.65, 0.002, members=2), point(0.671, members=3)]
    return {
        "members": 3,
        "runs": runs,
        "snapshots": None,
        "ensemble": None,
        "ranked": False,
        "seed": 0,
    } | more


def size(m: int, slope: float | None, error: float | None = None, left_out: int = 0) -> dict[str, Any]:
    return {
        "members": m,
        "subsets": 3,
        "left_out": left_out,
        "diversity": [0.5, 0.75, 1.0],
        "gain": [0.01, 0.02, 0.015],
        "slope": slope,
        "slope_error": error,
        "intercept": 0.005,
        "r": 0.61 if slope is not None else None,
    }


def gains(*sizes: dict[str, Any], measure: str = "ratio_error") -> dict[str, Any]:
    return {"measure": measure, "sizes": list(sizes), "seed": 0}


def shares(m: int, *means: float) -> dict[str, Any]:
    return {
        "members": m,
        "shares": [
            point(mean, 0.001, share=k / (len(means) - 1), recycled=k) for k, mean in enumerate(means)
        ],
    }


def tasks(*points: dict[str, Any]) -> dict[str, Any]:
    return {"members": 20, "groups": {}, "tasks": list(points)}


def line(verdict: str = "Connected: no point is worse than the chord.", ends: int = 2) -> dict[str, Any]:
    points = [
        {"coefficients": [1 - t, t], "value": 0.5 + t * (1 - t), "chord": 0.5, "drop": 0.0}
        for t in (0, 0.5, 1)
    ]
    return {"ends": ends, "scores": {"OOD": {"points": points, "verdict": verdict}}, "connected": True}


def real() -> list[Plot]:
    """All six from numbers that were computed."""
    random = np.random.default_rng(0)
    thetas = [{"w": random.normal(size=3)} for _ in range(6)]
    logits, labels = torch.as_tensor(random.normal(size=(6, 40, 3))), torch.zeros(40, dtype=torch.long)

    def score(theta: Any) -> float:
        return 1 - 0.05 * float(theta["w"] @ theta["w"])

    curves = accuracy_against_members(thetas, score, snapshots=thetas[:3], logits=logits, labels=labels)
    gain = gain_against_diversity(thetas, score, logits.argmax(-1) == labels)
    groups = {"ImageNet": thetas[:2], "VLCS": thetas[2:4], "PACS": thetas[4:]}
    return [
        draw_accuracy_against_members(curves),
        draw_gain_against_diversity(gain),
        draw_slope_against_members(gain),
        draw_accuracy_against_share(
            *(accuracy_against_share(thetas[:3], thetas[3:], score, members=m) for m in (2, 3))
        ),
        draw_accuracy_against_tasks(accuracy_against_tasks(groups, score, members=2)),
        draw_interpolation_curve(
            interpolation_curve(*thetas[:2], {"ID": score, "OOD": lambda theta: score(theta) ** 2})
        ),
        draw_interpolation_curve(
            interpolation_curve(*thetas[:2], {"OOD": score}, theta_c=thetas[2]), name="three"
        ),
    ]


@pytest.fixture(scope="module")
def drawn() -> list[Plot]:
    return real()


def texts(plot: Plot) -> str:
    return " ".join("".join(ElementTree.fromstring(plot.svg(inline=False)).itertext()).split())


def lines(plot: Plot) -> list[Any]:
    figure = Figure()
    plot.draw(figure)
    return list(figure.axes[0].lines)


def test_every_figure_is_a_drawing_for_both_themes_and_a_file(drawn: list[Plot]) -> None:
    names = [plot.name for plot in drawn]
    assert len(set(names)) == len(names)
    for plot in drawn:
        file, inline = plot.svg(inline=False), plot.svg(inline=True)
        assert ElementTree.fromstring(file).get("aria-label") == plot.alt
        assert "var(--average)" in inline
        for placeholder, light in COLORS.values():
            assert placeholder not in file + inline
            assert light not in inline
        identifiers = re.findall(r'\bid="([^"]*)"', inline)
        assert identifiers
        assert all(each.startswith(f"{plot.name}-") for each in identifiers)


def test_sentences_hold_the_numbers_and_end(drawn: list[Plot]) -> None:
    for plot in drawn:
        for text in (plot.alt, plot.caption):
            assert re.search(r"\d", text) or "Connected" in text
            assert text.endswith(".")
            assert ".." not in text
            assert "None" not in text


def test_axes_have_units(drawn: list[Plot]) -> None:
    expected = [
        ("members", "OOD accuracy, percent"),
        ("ratio-error, mean over pairs", "gain in OOD accuracy, points"),
        ("members", "points of gain per unit of ratio-error"),
        ("share of inter-trained members, percent", "OOD accuracy, percent"),
        ("auxiliary tasks", "OOD accuracy, percent"),
        ("", "accuracy, percent"),
        ("", "accuracy, percent"),
    ]
    for plot, (x, y) in zip(drawn, expected, strict=True):
        assert x in texts(plot)
        assert y in texts(plot)


def test_a_drawing_has_the_same_bytes_whatever_the_user_has_set(drawn: list[Plot]) -> None:
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        again = [plot.svg(inline=True) for plot in real()]
    assert again == [plot.svg(inline=True) for plot in drawn]


def test_accuracies_are_drawn_in_percent_with_their_errors() -> None:
    found = lines(draw_accuracy_against_members(members()))
    assert list(found[0].get_xdata()) == [1, 2, 3]
    assert list(found[0].get_ydata()) == pytest.approx([60, 65, 67.1])
    assert [list(bar.get_ydata()) for bar in found[1:]] == [
        pytest.approx([59, 61]),
        pytest.approx([64.8, 65.2]),
    ]


def test_members_are_told_in_a_sentence() -> None:
    plot = draw_accuracy_against_members(members(), what="ID accuracy", title="PACS")
    told = "verage of 3 members of different runs: 67.1, 7.1 points more than of 1"
    assert plot.alt == f"ID accuracy in percent against the number of members (PACS): a{told}."
    assert (
        plot.caption
        == f"A{told}. In percent; a point is the mean over subsets. Bars and ±: one standard error."
    )
    assert "ID accuracy, percent" in texts(plot)
    assert "PACS" in texts(plot)


def test_an_average_that_falls_with_members_is_told_so() -> None:
    runs = [point(0.6, members=1), point(0.55, members=4)]
    caption = draw_accuracy_against_members(members(runs=runs, ranked=True)).caption
    assert caption == (
        "Average of 4 members of different runs: 55.0, 5.0 points less than of 1. In percent; the best members first."
    )


def test_a_single_series_needs_no_legend_and_several_have_one() -> None:
    one = draw_accuracy_against_members(members())
    assert "average of runs" not in texts(one)
    three = draw_accuracy_against_members(
        members(snapshots=[point(0.6, members=1)], ensemble=members()["runs"])
    )
    for label in ("average of runs", "average along one run", "ensemble of runs"):
        assert label in texts(three)
    assert "average of 1 member of one run: 60.0." in three.alt


def test_average_and_ensemble_have_their_colours_of_the_report() -> None:
    found = {
        each.get_label(): each.get_color()
        for each in lines(draw_accuracy_against_members(members(ensemble=members()["runs"])))
    }
    assert found["average of runs"] == COLORS["average"][0]
    assert found["ensemble of runs"] == COLORS["ensemble"][0]


def test_slopes_are_told_per_unit_with_their_errors() -> None:
    plot = draw_gain_against_diversity(gains(size(2, -0.0123), size(4, 0.008, 0.002, left_out=2)))
    assert plot.caption == (
        "Slope −1.2 points per unit of ratio-error for M = 2 (r = 0.61, 3 subsets); "
        "slope 0.8 ± 0.2 for M = 4 (r = 0.61, 3 subsets). A dot is a subset of M members. "
        "2 subsets without a finite ratio-error left out."
    )
    assert "M = 2" in texts(plot)
    one = draw_gain_against_diversity(gains(size(4, 0.008, 0.002), measure="q_diversity"))
    assert one.alt == (
        "Gain in OOD accuracy of averages over their members against Q-diversity: "
        "slope 0.8 ± 0.2 points per unit of Q-diversity for M = 4 (r = 0.61, 3 subsets)."
    )


def test_dots_and_their_line_are_drawn_in_points() -> None:
    dots, fit = lines(draw_gain_against_diversity(gains(size(4, 0.008, 0.002))))
    assert list(dots.get_ydata()) == pytest.approx([1, 2, 1.5])
    assert list(fit.get_xdata()) == [0.5, 1.0]
    assert list(fit.get_ydata()) == pytest.approx([0.5 + 0.4, 0.5 + 0.8])


def test_sizes_without_a_line_or_without_dots_are_said_so() -> None:
    nothing = {**size(3, None, left_out=1), "subsets": 0, "diversity": [], "gain": []}
    plot = draw_gain_against_diversity(gains(size(2, None), nothing))
    assert plot.caption == (
        "No slope is determined for M = 2 (3 subsets). A dot is a subset of M members. "
        "1 subset without a finite ratio-error left out."
    )
    assert len(lines(plot)) == 1
    assert "No subset has a finite diversity" in draw_gain_against_diversity(gains(nothing)).caption
    assert "No slope is determined" in draw_slope_against_members(gains(size(2, None), nothing)).caption


def test_slopes_against_members_are_drawn_where_there_is_one() -> None:
    plot = draw_slope_against_members(gains(size(2, 0.001, 0.004), size(3, None), size(4, 0.008, 0.002)))
    _, slopes, *bars = lines(plot)
    assert list(slopes.get_xdata()) == [2, 4]
    assert list(slopes.get_ydata()) == pytest.approx([0.1, 0.8])
    assert len(bars) == 2
    assert plot.caption.startswith(
        "Slope 0.1 ± 0.4 for M = 2 and 0.8 ± 0.2 for M = 4, in points of OOD accuracy"
    )


def test_the_best_share_is_told() -> None:
    plot = draw_accuracy_against_share(shares(2, 0.70, 0.72, 0.71), what="ID accuracy")
    assert plot.caption == (
        "M = 2: 70.0 ± 0.1 without and 71.0 ± 0.1 with inter-trained members only, highest at 50 % with 72.0 ± 0.1. "
        "A point is the mean over choices of members. Bars and ±: one standard error."
    )
    assert list(lines(plot)[0].get_xdata()) == [0, 50, 100]


def test_several_shares_are_several_curves_with_labels_of_their_own() -> None:
    both = shares(2, 0.7, 0.72, 0.71), shares(2, 0.8, 0.81, 0.83)
    plot = draw_accuracy_against_share(*both, labels=["OOD", "ID"], what="accuracy")
    assert "OOD: 70.0" in plot.alt
    assert "ID: 80.0" in plot.alt
    drawn = [each for each in lines(plot) if len(each.get_xdata()) == 3]
    assert [each.get_label() for each in drawn] == ["OOD", "ID"]


def test_tasks_that_cannot_be_had_and_groups_left_out_are_told() -> None:
    plot = draw_accuracy_against_tasks(
        tasks(
            point(None, subsets=0, tasks=1, too_small=["a", "b"]),
            point(0.70, 0.002, tasks=2, too_small=["RxRx"]),
            point(0.72, tasks=3, too_small=[]),
        )
    )
    assert plot.caption == (
        "72.0 with 3 auxiliary tasks, 2.0 points more than with 2, always of 20 members. A point is the mean over "
        "combinations of tasks and members. Bars and ±: one standard error. Too few members for 1: not drawn. "
        "With 2, too small and left out: RxRx."
    )
    assert list(lines(plot)[0].get_xdata()) == [2, 3]


def test_a_single_number_of_tasks_is_drawn_and_compared_with_nothing() -> None:
    plot = draw_accuracy_against_tasks(tasks(point(0.7, tasks=1, too_small=[])))
    assert plot.alt.endswith(": 70.0 with 1 auxiliary task, always of 20 members.")
    assert len(lines(plot)) == 1


def test_a_line_is_drawn_beside_its_chord_with_its_verdict() -> None:
    plot = draw_interpolation_curve(line(), names=["VLCS", "<RxRx>"], title="Hypothesis 1")
    curve, chord = lines(plot)
    assert list(curve.get_ydata()) == pytest.approx([50, 75, 50])
    assert list(chord.get_ydata()) == pytest.approx([50, 50, 50])
    assert plot.alt == (
        "Accuracy in percent on the line from VLCS to <RxRx> (Hypothesis 1). "
        "OOD: Connected: no point is worse than the chord."
    )
    for text in ("VLCS", "<RxRx>", "Hypothesis 1", "chord", "OOD"):
        assert text in texts(plot)


def test_a_line_of_three_starts_at_two_names_and_skips_what_is_not_a_number() -> None:
    numbers = line("Not connected.", ends=3)
    numbers["scores"]["OOD"]["points"][1]["value"] = None
    plot = draw_interpolation_curve(numbers, names=["A", "B", "C"])
    assert "from A + B to C. OOD: Not connected." in plot.alt
    assert len(lines(plot)[0].get_xdata()) == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda text: draw_accuracy_against_members(members(), what=text, title=text),
        lambda text: draw_gain_against_diversity(gains(size(2, 0.1), measure=text), what=text, title=text),
        lambda text: draw_slope_against_members(gains(size(2, 0.1), measure=text), what=text, title=text),
        lambda text: draw_accuracy_against_share(shares(2, 0.1, 0.2), labels=[text], what=text, title=text),
        lambda text: draw_accuracy_against_tasks(tasks(point(0.1, tasks=1, too_small=[text])), title=text),
        lambda text: draw_interpolation_curve(line(text), names=[text, text], title=text),
    ],
)
def test_names_of_strangers_cannot_break_a_drawing(draw: Callable[[str], Plot]) -> None:
    plot = draw('"<b>&$x$\x1b[31m\x00')
    ElementTree.fromstring(plot.svg(inline=False))
    assert "\x1b" not in plot.alt + plot.caption
    assert "<b>" not in plot.svg(inline=True)


def test_numbers_are_left_as_they_were() -> None:
    numbers = gains(size(2, 0.1))
    copy = gains(size(2, 0.1))
    draw_gain_against_diversity(numbers).svg(inline=True)
    assert numbers == copy


def test_series_differ_without_colour() -> None:
    styles = [module._style(k) for k in range(16)]
    assert len({style["marker"] for style in styles[:9]}) == 9
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 16


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys, mirepoix.report._strategy_figures; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
