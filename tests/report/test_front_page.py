"""The page of a front of rewarded soups, from fronts whose numbers are computed by `mirepoix.rewards`."""

from __future__ import annotations

import copy
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from front_samples import front_report, picture
from rich.console import Console
from typer.testing import CliRunner

from mirepoix.report import read_report, terminal_table, write_report
from mirepoix.report._front import _page, _prepared, front_texts, front_volumes
from mirepoix.report._front_figures import along_plots, digits_of, front_plots, spider_plots
from mirepoix.report._numbers import decimal, decimals

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return front_report()


@pytest.fixture
def report(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made)


@pytest.fixture(scope="module")
def texts(made: dict[str, Any]) -> dict[str, str]:
    return front_texts(made)


@pytest.fixture(scope="module")
def several() -> dict[str, Any]:
    return front_report(trials=2, steps=4)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the text alone: drawing takes most of the time."""
    monkeypatch.setattr("mirepoix.report._figures._draw", lambda plot: "")


class Tags(HTMLParser):
    """Which tags there are, and that each is closed."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def heads(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def table_of(report: dict[str, Any]) -> list[list[str]]:
    return [[cell.text for cell in line] for line in front_volumes(report).lines]


def check(texts: dict[str, str]) -> None:
    """What holds for any report: nothing active, nothing loaded, every drawing whole and named."""
    seen = tags(texts["report.html"])
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in seen}
    for _, attributes in seen:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    identifiers = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    numbers = [int(head.split(".")[0]) for head in heads(texts["report.md"])]
    assert numbers == list(range(1, len(numbers) + 1))
    for name, text in texts.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)
            assert f"({name})" in texts["report.md"]
            assert "var(--" not in text


# What is on the page.


def test_the_page_has_every_section_in_order(texts: dict[str, str]) -> None:
    check(texts)
    expected = [
        "1. What it is",
        "2. The front",
        "3. Are the experts connected?",
        "4. Every reward along lambda",
        "5. All rewards at once",
        "6. Samples",
        "7. Which weights?",
        "8. When not to trust it",
        "9. Details",
    ]
    assert heads(texts["report.md"]) == expected
    assert re.findall(r"<h2 id=\"\w+\">(.*?)</h2>", texts["report.html"]) == expected
    figures = ["front", "along_0", "along_1", "along_2", "along_3", "spider"]
    assert [name for name in texts if name.startswith("figures/")] == [
        f"figures/{name}.svg" for name in figures
    ]
    assert texts["report.html"].count("<svg") == len(figures)
    assert list(texts)[-1] == "report.html"


def test_the_numbers_are_those_of_the_fronts(report: dict[str, Any], texts: dict[str, str]) -> None:
    trial = report["trials"][0]
    row = trial["fronts"][0]["rows"][3]
    digits = digits_of(report)["helpful"]
    mean, error = row["means"]["helpful"], row["standard_errors"]["helpful"]
    volume, curve = trial["volumes"][0], trial["curves"][2]
    difference = trial["difference"]
    pieces = [
        f"{mean:.{digits}f} ± {error:.{digits}f}".replace("-", "−"),
        f"{volume['hypervolume']:.3f}",
        f"{volume['area']:.3f}",
        f"{volume['used']} of {volume['points']}",
        f"{difference['hypervolume']['mean']:+.4f} (95 % interval {difference['hypervolume']['low']:+.4f} to",
        f"MORL dominates {100 * difference['dominated'][0]:.0f} % of the soups",
        f"+{curve['gain']:.{digits_of(report)['fluency']}f}",
        "rewards scaled to",
        "Higher is better",
        "Lower is better",
        "helpful 0.3, short 0.7",
        "chosen",
        "helpful (trained on), short (trained on), fluency (only measured)",
        "Experts are connected; MORL reaches a little more",
        "smallest margin 0 at lambda",
        "Choose on other prompts",
        "RLOO",
        "mirepoix rewards reviews.toml",
        "one standard error over items",
    ]
    for text in (texts["report.md"], texts["report.html"]):
        for piece in pieces:
            assert piece in text, piece


def test_the_best_of_a_column_is_marked_the_largest_volume_and_the_smallest_area(
    report: dict[str, Any],
) -> None:
    for row, (volume, area) in zip(
        report["summary"], ((0.5, 0.4), (0.6, 0.3), (0.6, 0.5), (0.1, 0.9)), strict=True
    ):
        row |= {"hypervolume": {"mean": volume, "error": None}, "area": {"mean": area, "error": None}}
    table = front_volumes(report)
    assert table.columns == (
        "System",
        "Hypervolume",
        "Area over the front",
        "Points that count",
        "Trainings",
        "Seconds",
    )
    assert [line[1].best for line in table.lines] == [False, True, True, False]
    assert [line[2].best for line in table.lines] == [False, True, False, False]


def test_what_no_system_has_is_no_column(report: dict[str, Any]) -> None:
    for row in report["summary"]:
        row |= {"area": {"mean": None, "error": None}, "trainings": None, "seconds": None}
    report["trials"][0]["volumes"] = []
    assert front_volumes(report).columns == ("System", "Hypervolume")


def test_several_trials_have_errors_a_table_each_and_lighter_lines(several: dict[str, Any]) -> None:
    texts = front_texts(several)
    check(texts)
    page = texts["report.md"]
    numbers = several["summary"][0]["hypervolume"]
    assert f"{numbers['mean']:.3f} ± {numbers['error']:.3f}" in page
    assert "Mean ± standard error over 2 trials." in page
    assert "| System | seed 0 | seed 1 |" in page
    assert "### Rewarded soup: 10 points" in page
    assert (
        "Linear mode connectivity holds in 2 of 2 trials. The front is on or above the chord in 2 of 2."
        in page
    )
    assert "- seed 1: Hypervolume, rewarded soup − MORL: " in page
    assert "Lighter: trials after seed 0." in page
    assert "stroke-opacity: 0.35" in texts["figures/front.svg"]
    assert "stroke-opacity: 0.35" in texts["figures/along_0.svg"]
    assert "stroke-opacity: 0.35" not in front_plots(front_report(steps=2))[0].svg(inline=False)
    assert texts["report.html"].count("<summary>seed ") == 2


def test_points_of_several_trials_are_told_apart(several: dict[str, Any]) -> None:
    page = _page(_prepared(several), drawn=True, along=True, spider=True)
    table = page.points[0].table
    assert table.columns[:3] == ("λ helpful", "λ short", "Trial")
    assert [line[2].text for line in table.lines] == ["seed 0"] * 5 + ["seed 1"] * 5
    assert not page.points[0].folded
    assert all(each.folded for each in page.points[1:])
    assert page.points[1].table.columns[0] == "μ helpful"


def test_dominated_points_are_marked_and_hollow(report: dict[str, Any]) -> None:
    assert "Hollow" not in front_plots(report)[0].caption
    row = report["trials"][0]["fronts"][0]["rows"][4]
    row |= {"nondominated": False, "nondominated_probability": 0.125}
    (plot,) = front_plots(report)
    assert "Hollow: dominated by a point of the same system." in plot.caption
    assert "fill: #ffffff" in plot.svg(inline=False)
    assert "fill: var(--surface)" in plot.svg(inline=True)
    page = front_texts(report)["report.md"]
    assert re.search(r"^\| 0\.4 \|.*\| dominated \| 0\.1[23] \|$", page, re.MULTILINE)


def test_lambda_is_named_at_the_ends_and_in_the_middle(report: dict[str, Any]) -> None:
    rows = report["trials"][0]["fronts"][0]["rows"]
    report["trials"][0]["fronts"][0]["rows"] = rows[::-1]
    drawing = front_plots(report)[0].svg(inline=True)
    assert re.findall(r">(λ = [\d.]+)</text>", drawing) == ["λ = 0", "λ = 0.5", "λ = 1"]
    assert along_plots(report)["fluency"].alt.startswith(
        "fluency of the soup against the share of helpful: 0.6951 at 0"
    )


def test_three_rewards_are_drawn_in_pairs_and_more_as_a_spider_only() -> None:
    three = front_report(("a", "b", "c"), steps=6, roles=("soup",))
    texts = front_texts(three)
    check(texts)
    assert [name for name in texts if "figures/" in name] == [f"figures/front_{k}.svg" for k in range(3)] + [
        "figures/spider.svg"
    ]
    assert not any(">λ = " in text for name, text in texts.items() if "figures/" in name), (
        "lambda has no order"
    )
    assert "Every reward along lambda" in texts["report.html"], "its table"
    four = front_report(("a", "b", "c", "d"), steps=6, roles=("soup",))
    assert [name for name in front_texts(four) if "figures/" in name] == ["figures/spider.svg"]


def test_a_spider_needs_all_values_of_a_polygon(report: dict[str, Any]) -> None:
    polygons = report["trials"][0]["spider"]["polygons"]
    polygons[1]["values"]["short"] = None
    (plot,) = spider_plots(report)
    assert "uniform soup" in plot.alt
    assert "short 0.05, 0.95" not in plot.alt
    report["trials"][0]["spider"]["polygons"] = polygons[1:2]
    assert spider_plots(report) == []


def test_samples_keep_their_lines_and_show_images(texts: dict[str, str]) -> None:
    page = texts["report.html"]
    assert ">it was\n  a long evening, long.</p>" in page
    images = [attributes for tag, attributes in tags(page) if tag == "img"]
    assert [image["src"] for image in images] == [picture(k) for k in range(4)]
    assert images[0]["alt"] == "Image of prompt 3"
    assert images[2]["alt"] == "λ = 0.5: image for prompt 3"
    assert "image-rendering: pixelated" in page
    assert "(image, in report.html)" in texts["report.md"]
    assert "data:image" not in texts["report.md"]


@pytest.mark.usefixtures("undrawn")
def test_many_prompts_are_folded_and_missing_answers_said(report: dict[str, Any]) -> None:
    report["samples"] = {
        "items": [{"prompt": f"prompt {k}", "image": None} for k in range(5)],
        "columns": [{"label": "λ = 0", "answers": ["", None, "an answer"]}],
    }
    texts = front_texts(report)
    check(texts)
    assert "More prompts (2)" in texts["report.html"]
    assert "(empty)" in texts["report.html"]
    assert texts["report.md"].count(": n/a") == 3


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/a.png",
        "javascript:alert(1)",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        'data:image/png;base64,AAAA" onerror="x',
        7,
    ],
)
def test_an_image_that_the_page_does_not_hold_is_not_shown(report: dict[str, Any], image: Any) -> None:
    report["samples"] = {
        "items": [{"prompt": "p", "image": image}],
        "columns": [{"label": "λ", "answers": [{"image": image}]}],
    }
    texts = front_texts(report)
    check(texts)
    assert "<img" not in texts["report.html"]
    assert "n/a" in texts["report.html"]


# What is left out.


@pytest.mark.usefixtures("undrawn")
def test_a_page_with_almost_nothing(tmp_path: Path) -> None:
    texts = front_texts({"format": 1, "kind": "front", "name": "x", "mirepoix": "0.1"})
    check(texts)
    assert heads(texts["report.md"]) == ["1. What it is", "2. When not to trust it"]
    assert "Nothing suspicious was found." in texts["report.html"]
    assert set(texts) == {"report.md", "report.html"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("without", "head"),
    [
        ({"samples": None}, "Samples"),
        ({"choice": None}, "Which weights?"),
        ({"protocol": {}, "environment": {}, "command": ""}, "Details"),
    ],
)
def test_sections_without_content_are_left_out(
    report: dict[str, Any], without: dict[str, Any], head: str
) -> None:
    texts = front_texts(report | without)
    check(texts)
    assert len(heads(texts["report.md"])) == 8
    assert head not in " ".join(heads(texts["report.md"]))


@pytest.mark.usefixtures("undrawn")
def test_optional_parts_of_a_trial_may_be_missing(report: dict[str, Any]) -> None:
    report["trials"][0] |= {
        "connectivity": None,
        "difference": None,
        "spider": None,
        "curves": [],
        "box": None,
    }
    report["trials"][0]["fronts"] = report["trials"][0]["fronts"][:1]
    report["summary"] = []
    texts = front_texts(report)
    check(texts)
    assert [head.split(". ")[1] for head in heads(texts["report.md"])] == [
        "What it is",
        "The front",
        "Every reward along lambda",
        "Samples",
        "Which weights?",
        "When not to trust it",
        "Details",
    ]


def blanked(value: Any) -> Any:
    """The same without any number."""
    if isinstance(value, dict):
        return {key: blanked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blanked(item) for item in value]
    return None if isinstance(value, int | float) else value


@pytest.mark.parametrize("key", ["trials", "summary", "choice"])
def test_numbers_that_are_not_known_are_said(report: dict[str, Any], key: str) -> None:
    report[key] = blanked(report[key])
    texts = front_texts(report)
    check(texts)
    assert "None" not in re.sub(r"<style>.*?</style>", "", texts["report.html"], flags=re.DOTALL)
    assert "nan" not in texts["report.md"]
    if key == "trials":
        assert "figures/front.svg" not in texts
        assert "**Not known.**" in texts["report.md"]


def test_one_unknown_mean_leaves_one_point_out(report: dict[str, Any]) -> None:
    rows = report["trials"][0]["fronts"][0]["rows"]
    rows[2]["means"]["short"] = None
    rows[3]["standard_errors"] = None
    texts = front_texts(report)
    check(texts)
    assert "rewarded soup, 10 points" in front_plots(report)[0].alt
    assert re.search(r"^\| 0\.2 \| 0\.8 \| \S+ ± \S+ \| n/a ", texts["report.md"], re.MULTILINE)


# Hard inputs.


def test_one_expert_and_one_point() -> None:
    single = front_report(("only",), steps=1, roles=("soup",))
    assert len(single["trials"][0]["fronts"][0]["rows"]) == 1
    texts = front_texts(single)
    check(texts)
    assert "figures/front.svg" not in texts
    assert "Rewarded soup: 1 point" in texts["report.md"]


def test_one_point_of_two_experts(report: dict[str, Any]) -> None:
    trial = report["trials"][0]
    trial["fronts"] = trial["fronts"][:1]
    trial["fronts"][0]["rows"] = trial["fronts"][0]["rows"][5:6]
    texts = front_texts(report)
    check(texts)
    assert "rewarded soup at (0.451, 0.508)" in front_plots(report)[0].alt
    assert not along_plots(report)


def test_a_reward_without_extent_is_named(report: dict[str, Any]) -> None:
    trial = report["trials"][0]
    for front in trial["fronts"]:
        for row in front["rows"]:
            row["means"]["short"] = 0.5
            row["standard_errors"]["short"] = 0.0
    trial["box"] = {"ideal": {"helpful": 1.0, "short": 0.5}, "nadir": {"helpful": 0.0, "short": 0.5}}
    for row in report["summary"]:
        row |= {"hypervolume": {"mean": None, "error": None}, "area": {"mean": None, "error": None}}
    texts = front_texts(report)
    check(texts)
    assert "All points have the same short, which cannot be scaled." in texts["report.md"]
    assert table_of(report)[0][1] == "n/a"


def test_two_hundred_points_are_folded() -> None:
    many = front_report(steps=200, roles=("soup",))
    texts = front_texts(many)
    check(texts)
    assert "<summary>Rewarded soup: 201 points</summary>" in texts["report.html"]
    assert texts["report.md"].count("\n| 0.") >= 199


HARD = (
    "\u202e<script>alert('x')</script> & \"q\" $x$ _a_ |b| `c` *d* [e](f)\n\x1b[31m\ud800日本語 " + "n" * 300
)


def renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def test_names_of_strangers_are_only_text(report: dict[str, Any]) -> None:
    names = {
        "helpful": f"_{HARD}",
        "short": f"{HARD}2",
        "fluency": f"{HARD}3",
        "rewarded soup": f"_{HARD}4",
        "seed 0": HARD,
        "The film was": HARD,
        "good.": HARD,
        "λ = 0": HARD,
    }
    hard = renamed(report, names)
    hard |= dict.fromkeys(("name", "title", "source", "verdict", "command", "mirepoix"), HARD)
    hard |= {"facts": [[HARD, HARD]], "warnings": [HARD], "trust": [["note", HARD], ["warning", f"{HARD}5"]]}
    hard["protocol"] = hard["environment"] = {HARD: HARD}
    hard["choice"] |= {"method": HARD, "exported": HARD, "notes": [HARD]}
    hard["trials"][0]["connectivity"]["verdict"] = f"{HARD}\nsecond line"
    texts = front_texts(hard)
    check(texts)
    for text in texts.values():
        text.encode()
        # A command in markdown is code, and printed as it is.
        assert "<script" not in re.sub(r"^`.*`$", "", text, flags=re.MULTILINE)
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "&lt;script&gt;" in texts["report.html"]
    assert "日本語" in texts["report.html"]
    assert "- second line" in texts["report.md"]
    for line in texts["report.md"].splitlines():
        if line.startswith("| λ"):
            assert line.replace("\\|", "").count("|") == 9
    drawing = texts["figures/front.svg"]
    assert max(len(unescape(text)) for text in re.findall(r">([^<]*)</text>", drawing)) <= 48
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(hard))
    assert "\x1b" not in console.file.getvalue()


def test_warnings_come_first_and_once(report: dict[str, Any]) -> None:
    report["warnings"] = ["Expert a equals its start.", "Few prompts."]
    page = _page(_prepared(report), drawn=True, along=True, spider=True)
    assert page.trust == (
        ("warning", "Expert a equals its start."),
        ("warning", "Few prompts."),
        ("note", "Choose on other prompts than you report on."),
    )


@pytest.mark.usefixtures("undrawn")
def test_experts_that_are_not_connected_are_said_not_to_be(report: dict[str, Any]) -> None:
    connectivity = report["trials"][0]["connectivity"]
    connectivity |= {"holds": False, "above_chord": None, "verdict": "It fails.\nAt two points."}
    connectivity["rewards"][0] |= {"holds": False, "minimum": -0.25, "at": {"helpful": 0.5, "short": 0.5}}
    page = front_texts(report)["report.md"]
    assert "**No.**\n\n- It fails.\n- At two points." in page
    assert re.search(r"^\| helpful \| −0\.250+ \| helpful 0\.5, short 0\.5 \|.*\| no \|$", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "digits"),
    [
        ([0.8234, 0.8497], 4),
        ([1461.0, 4062.0], 0),
        ([0.5, 0.5], 3),
        ([0.3, 0.1 + 0.2], 3),
        ([0.0, 0.0], 2),
        ([], 2),
        ([None, 12.0, -3.5], 1),
        ([1e-30, 2e-30], 8),
        ([1e30, 0.0], 0),
    ],
)
def test_decimals_are_those_of_the_extent(values: list[float | None], digits: int) -> None:
    assert decimals(values) == digits


@pytest.mark.parametrize(
    ("value", "error", "digits", "text"),
    [
        (-0.25, 0.1, 2, "−0.25 ± 0.10"),
        (-0.0001, None, 2, "0.00"),
        (6447.2, 12.4, 0, "6,447 ± 12"),
        (-1e12, None, 2, "−1e+12"),
        (2e-30, None, 8, "2e−30"),
        (None, 0.1, 2, "n/a"),
        (True, None, 2, "n/a"),
        (float("nan"), None, 2, "n/a"),
    ],
)
def test_numbers_are_printed_with_their_decimals(value: Any, error: Any, digits: int, text: str) -> None:
    assert decimal(value, error, digits=digits) == text


# Files, terminal, command.


def test_files_are_written_and_read_again(made: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(made)
    files = write_report(made, tmp_path)
    assert made == before
    assert files[0].name == "report.json"
    assert files[-1].name == "report.html"
    assert read_report(tmp_path) == json.loads(json.dumps(made))
    first = {path: path.read_bytes() for path in files}
    write_report(read_report(tmp_path), tmp_path)
    assert first == {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(("width", "columns"), [(120, 6), (62, 3)])
def test_the_table_fits_a_terminal(made: dict[str, Any], width: int, columns: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_table(made))
    text = console.file.getvalue()
    assert "Hypervolume" in text
    assert "higher is better" in text
    assert ("Trainings" in text) == (columns == 6)


def test_the_command_writes_the_page_again(made: dict[str, Any], tmp_path: Path) -> None:
    from mirepoix.cli._app import app

    write_report(made, tmp_path)
    (tmp_path / "report.html").unlink()
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Hypervolume" in result.output
    assert made["verdict"] in result.output
    assert (tmp_path / "report.html").exists()
    printed = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert json.loads(printed.output)["kind"] == "front"


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium; on Debian: apt-get install chromium")
def test_the_page_fits_and_is_silent(made: dict[str, Any], several: dict[str, Any], tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    long = renamed(
        several, {"helpful": "h" * 300, "rewarded soup": "s" * 300, "fluency": "f" * 300, "seed 0": "t" * 300}
    )
    long |= {"title": "x" * 300}
    long["samples"]["columns"][0] |= {"label": "l" * 300, "answers": ["a" * 3000]}
    pages = {"one": made, "long": long}
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        for name, content in pages.items():
            path = tmp_path / f"{name}.html"
            path.write_text(front_texts(content)["report.html"], encoding="utf-8")
            for width, theme in ((390, "light"), (1200, "dark")):
                said: list[str] = []
                requests: list[str] = []
                page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                page.goto(path.as_uri())
                page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert said == []
                assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
                page.close()
        browser.close()
