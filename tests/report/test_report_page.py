from __future__ import annotations

import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from report_samples import LABELS, hard_report, sample_report
from rich.console import Console

from mirepoix.report import html, markdown, terminal_table
from mirepoix.report._figures import COLORS, plots
from mirepoix.report._numbers import amount, cleaned, percent, points, ratio, setting
from mirepoix.report._result import find_label, gains, prepared
from mirepoix.report._tables import accuracy_table


class Text(HTMLParser):
    """What a reader sees: tables as rows of cells, which cells are bold, which tags there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self._cell = self._strong = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "strong":
            self._strong = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "strong":
            self._strong = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data
            if self._strong:
                self.bold.append(data)


@pytest.fixture(scope="module")
def hard() -> tuple[dict[str, Any], str, str]:
    report = hard_report()
    return report, html(report), markdown(report)


def printed(report: Any, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_table(report))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.9314, None, "93.1"),
        (0.9314, 0.004, "93.1 ± 0.4"),
        (1.0, 0.0, "100.0 ± 0.0"),
        (0, None, "0.0"),
        (None, 0.1, "n/a"),
        (math.nan, None, "n/a"),
        ("infinite", None, "n/a"),
    ],
)
def test_fractions_print_as_percent_with_one_decimal(value: Any, error: Any, text: str) -> None:
    assert percent(value, error) == text


def test_differences_print_in_points_with_their_sign() -> None:
    assert [points(x) for x in (0.0123, -0.0123, 0.0, -0.0004, None)] == ["+1.2", "−1.2", "0.0", "0.0", "n/a"]


def test_infinite_and_missing_ratios_are_told_apart() -> None:
    assert [ratio(x) for x in ("infinite", math.inf, None, math.nan, 1.234)] == [
        "∞",
        "∞",
        "n/a",
        "n/a",
        "1.23",
    ]


def test_amounts_and_settings_read_as_words() -> None:
    assert [amount(1, "class", "classes"), amount(2, "class", "classes"), amount(1200, "image")] == [
        "1 class",
        "2 classes",
        "1,200 images",
    ]
    assert [setting(x) for x in (None, True, 5e-05, 32, "adam")] == ["n/a", "yes", "5e-05", "32", "adam"]


def test_names_are_made_printable_on_one_line() -> None:
    assert cleaned({"a\nb": ["\x1b[31m", "é", "\udcff"]}) == {"a b": ["\ufffd[31m", "é", "\ufffd"]}


def test_every_strategy_and_target_is_in_every_rendering(hard: tuple[dict[str, Any], str, str]) -> None:
    report, page, text = hard
    tables = Text(page).tables
    for table in tables[:2]:
        assert table[0][: 2 + len(report["targets"])] == ["Strategy", *report["targets"], "Mean"]
        assert [line[0] for line in table[1:]] == [label for _, _, label, _, _ in LABELS]
    terminal = printed(report)
    for name in [*report["targets"], *(label for _, _, label, _, _ in LABELS)]:
        assert name in terminal
        assert name in text


def test_every_number_of_the_rows_is_in_the_tables(hard: tuple[dict[str, Any], str, str]) -> None:
    report, page, text = hard
    ood, identical = Text(page).tables[:2]
    for side, table in (("ood", ood), ("id", identical)):
        for row in report["rows"]:
            line = next(line for line in table if line[0] == row["label"])
            expected = percent(row[f"{side}_accuracy"], row[f"{side}_standard_error"])
            assert line[table[0].index(row["target"])] == expected
            assert expected in text


def test_the_best_of_each_column_is_bold_and_nothing_else() -> None:
    report = sample_report(("a", "b"))
    for label, a, b in [("mean member", 0.5, 0.81), ("WiSE", 0.70004, 0.2), ("greedy soup", 0.7, None)]:
        for row in report["rows"]:
            if row["label"] == label:
                row["ood_accuracy"] = a if row["target"] == "a" else b
    for row in report["rows"]:
        if row["label"] not in ("mean member", "WiSE", "greedy soup"):
            row["ood_accuracy"] = 0.1
    for row in report["averages"]:
        row["ood_accuracy"] = None
    table = accuracy_table(report, "ood")
    best = {(line[0].text, c) for line in table.lines for c, cell in enumerate(line) if cell.best}
    # 70.004 and 70.0 print alike: both are the best. A column without values has no best.
    assert best == {("WiSE", 1), ("greedy soup", 1), ("mean member", 2)}
    assert Text(html(report)).bold[:3] == ["81.0", "70.0", "70.0"]
    assert "| **70.0** | 20.0 |" in markdown(report)


def test_costs_are_in_the_table(hard: tuple[dict[str, Any], str, str]) -> None:
    table = Text(hard[1]).tables[0]
    assert table[0][-2:] == ["Runs", "Inference"]
    assert table[-1][-2:] == ["8", "8×"]
    assert table[1][-2:] == ["8", "1×"]


def test_verdict_trust_and_details_are_said(hard: tuple[dict[str, Any], str, str]) -> None:
    report, page, text = hard
    seen = "".join(Text(page).text)
    for rendering in (seen, text):
        assert report["verdict"] in rendering
        assert report["equation"] in rendering
        assert report["start"] in rendering
        assert report["command"] in rendering
        for item in report["trust"]:
            assert item["text"] in rendering
        assert "the loss is not finite at step 12" in rendering
        assert "95 finished, 1 diverged" in rendering
        assert "class '7' is missing in domain 'rotated_75'" in rendering
        assert rendering.index("too far apart") < rendering.index("one linear probe"), "warnings come first"
    assert "2 warnings" in seen


def test_every_run_is_listed_with_what_differs(hard: tuple[dict[str, Any], str, str]) -> None:
    report, page, _ = hard
    runs = next(table for table in Text(page).tables if "Status" in table[0])
    assert len(runs) == 1 + len(report["runs"])
    assert runs[0][-4:] == ["learning rate", "weight decay", "dropout", "seed"]
    assert [line[3] for line in runs].count("diverged") == 1
    assert "The same in every run: batch size 32, optimizer adam, augment yes." in page


def test_evidence_is_the_mean_over_data_seeds() -> None:
    report = sample_report(("a", "b"), seeds=2)
    first, second = (why for why in report["why"] if why["target"] == "a")
    first["ratio_error"], second["ratio_error"] = {"id": 1.0, "ood": 2.0}, {"id": None, "ood": 4.0}
    first["average_minus_ensemble"], second["average_minus_ensemble"] = 0.01, 0.03
    first["members_curve"] = [{"members": 1, "average": 0.5, "ensemble": 0.6, "subsets": 8}]
    second["members_curve"][0] = {"members": 1, "average": 0.7, "ensemble": None, "subsets": 8}
    merged = prepared(report)["why"]
    assert [why["target"] for why in merged] == ["a", "b"]
    assert merged[0]["ratio_error"] == {"id": 1.0, "ood": 3.0}
    assert merged[0]["average_minus_ensemble"] == 0.02
    assert merged[0]["members_curve"] == [{"members": 1, "average": 0.6, "ensemble": 0.6}]
    second["ratio_error"]["ood"] = "infinite"
    assert prepared(report)["why"][0]["ratio_error"]["ood"] == math.inf


def test_spread_and_length_are_ratios_of_mean_distances() -> None:
    report = sample_report(("a",), members=2)
    report["why"][0].update(distance_to_average=[1.0, 3.0], distance_to_start=[4.0, 6.0], start_norm=50.0)
    line = next(table for table in Text(html(report)).tables if "Spread of the members" in table[0])
    assert line[1][line[0].index("Spread of the members")] == "0.40"
    assert line[1][line[0].index("Length of the fine-tuning")] == "0.10"
    assert "0.71: 2 unrelated directions" in html(report)


def test_the_error_of_a_gain_is_that_of_paired_differences() -> None:
    report = sample_report(("a",), seeds=2)
    for row in report["rows"]:
        base = {"mean member": (0.5, 0.7), "average (DiWA uniform)": (0.6, 0.84)}.get(row["label"])
        if base:
            row["ood_accuracy"] = sum(base) / 2
            row["per_seed"] = [
                {"data_seed": s, "id_accuracy": 0, "ood_accuracy": x} for s, x in enumerate(base)
            ]
    gain, error = gains(report, "average (DiWA uniform)", "a")
    # Differences 0.10 and 0.14: mean 0.12, deviation 0.02, over the root of 2.
    assert gain == pytest.approx(0.12)
    assert error == pytest.approx(0.02 / math.sqrt(2))


def test_rows_are_found_by_name_or_by_how_they_combine() -> None:
    report = sample_report(("a",))
    assert find_label(report, "average") == "average (DiWA uniform)"
    for row in [*report["rows"], *report["averages"]]:
        row["label"] = {"average (DiWA uniform)": "DiWA", "mean member": "one run"}.get(
            row["label"], row["label"]
        )
    assert find_label(report, "average") == "DiWA"
    assert find_label(report, "mean") == "one run"
    assert find_label(report, "ensemble") == "ensemble of logits"


def test_missing_and_infinite_values_are_said_and_not_drawn(hard: tuple[dict[str, Any], str, str]) -> None:
    _, page, text = hard
    evidence = next(table for table in Text(page).tables if table[0][1] == "Ratio-error ID")
    assert evidence[3][:5] == ["photo", "∞", "∞", "n/a", "n/a"]
    assert evidence[4][-2] == "n/a"
    for rendering in (page, text):
        assert "∞: no image is wrong for both members" in rendering
        assert "Not drawn, for want of a finite value: photo." in rendering
        assert "nan" not in rendering.lower().replace("nance", "")
        assert "None" not in rendering
    assert "∞: no image" not in markdown(sample_report(("a", "b")))


def test_one_target_has_no_mean_and_one_curve() -> None:
    report = sample_report(("only",))
    assert [p.name for p in plots(report)] == ["gains", "members"]
    assert Text(html(report)).tables[0][0] == ["Strategy", "only", "Runs", "Inference"]
    assert "targets" not in markdown(report).lower().replace("**targets**", "")
    assert "only" in printed(report, 40)


def test_one_member_draws_no_curve() -> None:
    report = sample_report(("a", "b"), members=1)
    for why in report["why"]:
        why.update(ratio_error={"id": None, "ood": None}, q_statistic={"id": None, "ood": None})
    assert [p.name for p in plots(report)] == ["gains"]
    assert "1 fine-tuning from this start" in html(report)
    assert "unrelated directions" not in markdown(report)


@pytest.mark.parametrize("empty", [[], None])
def test_a_report_without_evidence_says_so(empty: Any) -> None:
    report = sample_report(("a", "b"))
    report.update(why=empty, trust=[], runs=[], averages=[])
    assert [p.name for p in plots(report)] == ["gains"]
    for rendering in (html(report), markdown(report)):
        assert "No evidence was collected." in rendering
        assert "Nothing suspicious was found." in rendering


def test_a_bare_report_still_has_its_five_sections() -> None:
    text = markdown({"format": 1, "name": "bare"})
    assert re.findall(r"^## (\d)", text, re.MULTILINE) == list("12345")
    assert html({"format": 1, "name": "bare"}).count("<h2") == 5


def test_names_of_strangers_are_harmless() -> None:
    name = "<script>alert(1)</script>"
    other = "$x$ | `y` **z** [red]&amp;\x1b[31m 漢"
    report = sample_report((name, other))
    report["verdict"] = report["equation"] = report["trust"][0]["text"] = name
    report["trust"][0]["target"] = other
    page, text = html(report), markdown(report)
    seen = Text(page)
    assert "script" not in seen.tags
    assert seen.tables[0][0][1:3] == [name, other.replace("\x1b", "\ufffd")]
    assert "<script" not in text.replace(f"`{name}`", "")
    assert "\x1b" not in page + text
    header = next(line for line in text.splitlines() if line.startswith("| Strategy"))
    assert r"$x$ \| \`y\` \*\*z\*\* \[red\]&amp;amp;" in header
    assert "[red]" in printed(report)


def test_equal_reports_give_equal_bytes() -> None:
    report = sample_report(("a", "b"), seeds=2, members=3)
    again = json.loads(json.dumps(report))
    untouched = copy.deepcopy(report)
    assert html(report) == html(again)
    assert markdown(report) == markdown(again)
    assert [p.svg(inline=False) for p in plots(report)] == [p.svg(inline=False) for p in plots(again)]
    assert report == untouched


def test_the_page_loads_nothing_and_runs_nothing(hard: tuple[dict[str, Any], str, str]) -> None:
    page = hard[1]
    assert "://" not in page
    assert not re.search(r"<script|<iframe|<img|@import|\son\w+=|url\((?!#)", page)
    assert set(re.findall(r'\b(?:href|src)="([^#"][^"]*)"', page)) == {"data:,"}


def test_references_within_the_page_are_unique_and_resolve(hard: tuple[dict[str, Any], str, str]) -> None:
    page = hard[1]
    ids = Text(page).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#|labelledby=")([\w-]+)', page)) <= set(ids)


def test_drawings_take_the_colours_of_the_theme(hard: tuple[dict[str, Any], str, str]) -> None:
    page = hard[1]
    drawings = re.findall(r'<svg viewBox.*?class="plot">.*?</svg>', page, re.DOTALL)
    assert len(drawings) == len(plots(hard[0])) == 7
    for drawing in drawings:
        assert 'role="img" aria-label="' in drawing
        assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing)) <= {
            "none",
            *(f"var(--{c})" for c in COLORS),
        }
    assert not any(placeholder in page for placeholder, _ in COLORS.values())


def luminance(color: str) -> float:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_the_contrast_of_wcag_aa_in_both_themes(hard: tuple[dict[str, Any], str, str]) -> None:
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", hard[1], re.DOTALL)
    ]
    light, dark = themes[:2]
    assert luminance(light["surface"]) > 0.9 > 0.1 > luminance(dark["surface"])
    for theme in (light, dark):
        for ink in ("ink", "muted", "average", "ensemble", "warning"):
            for ground in ("surface", "panel"):
                low, high = sorted((luminance(theme[ink]), luminance(theme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    assert {name: light[name] for name in COLORS} == {name: value for name, (_, value) in COLORS.items()}


def test_the_terminal_shows_every_target_or_their_worst() -> None:
    report = hard_report()
    wide, narrow = printed(report, 130), printed(report, 80)
    assert "art_painting" in wide
    assert "Worst target" in narrow
    assert "art_painting" not in narrow
    assert max(len(line) for line in narrow.splitlines()) <= 80
    worst = min(r["ood_accuracy"] for r in report["rows"] if r["label"] == "mean member")
    assert percent(worst) in next(line for line in narrow.splitlines() if "mean member" in line)
    assert "n/a" in next(line for line in narrow.splitlines() if "WiSE" in line)
