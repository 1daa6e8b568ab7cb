from __future__ import annotations

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mirepoix.report import write_benchmark_report
from mirepoix.report._figures import COLORS
from mirepoix.types import InputError


def point(mean: float | None, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "error": 0.004, "subsets": 4, **more}


def line(ends: int) -> dict[str, Any]:
    places = [[1 - t, t] if ends == 2 else [(1 - t) / 2, (1 - t) / 2, t] for t in (0, 0.5, 1)]
    points = [{"coefficients": place, "value": 0.5, "chord": 0.5, "drop": 0.0} for place in places]
    found = {"points": points, "verdict": "Connected: no point is worse than the chord."}
    return {"ends": ends, "scores": {"ID": found, "OOD": found}, "connected": True}


def evidence(target: str = "sketch") -> dict[str, Any]:
    size = {"subsets": 3, "left_out": 0, "diversity": [0.5, 0.75, 1.0], "gain": [0.01, 0.02, 0.015]}
    fit = {"slope": 0.02, "slope_error": 0.01, "intercept": 0.0, "r": 0.6}
    diversity = {
        "measure": "ratio_error",
        "sizes": [{"members": m, **size, **fit} for m in (2, 4)],
        "seed": 0,
    }
    curve = [point(0.6, members=1), point(0.65, members=2)]
    tasks = [point(0.61 + t / 100, tasks=t, too_small=[]) for t in (1, 2)]
    return {
        "dataset": "PACS",
        "target": target,
        "data_seed": 0,
        "subsets": 4,
        "averages": 60,
        "notes": ["no curve of one run"],
        "figures": {
            "members": {
                "kind": "accuracy_against_members",
                "numbers": {"members": 2, "runs": curve, "snapshots": None, "ensemble": curve},
            },
            "diversity": {"kind": "gain_against_diversity", "numbers": diversity},
            "diversity_inter_training": {
                "kind": "gain_against_diversity",
                "missing": "inter-training: 2 of 6 runs are not trained yet",
            },
            "share": {
                "kind": "accuracy_against_share",
                "numbers": {"members": 1, "shares": [point(0.6, share=0.0), point(0.62, share=1.0)]},
            },
            "tasks": {"kind": "accuracy_against_tasks", "numbers": {"members": 2, "tasks": tasks}},
            "hypothesis_1": {
                "kind": "interpolation_curve",
                "numbers": line(2),
                "names": ["VLCS", "CIFAR-10"],
            },
            "hypothesis_2": {
                "kind": "interpolation_curve",
                "numbers": line(2),
                "names": ["VLCS", "CIFAR-10"],
            },
            "three": {
                "kind": "interpolation_curve",
                "numbers": line(3),
                "names": ["VLCS", "CIFAR-10", "theta_pt"],
            },
        },
    }


FIGURES = 8
"""Of one split: seven that are there, one of them with its slopes."""


def sample(**more: Any) -> dict[str, Any]:
    table = {
        "title": "PACS, training-domain validation",
        "caption": "Protocol corrected; accuracy in percent.",
        "columns": ["Row", "photo", "sketch", "Avg"],
        "lines": [
            ["mean member", "91.2 ± 0.3", "58.0", "74.6"],
            ["DiWA uniform", "92.0 ± 0.2", "58.0", "75.0"],
            ["ratatouille†", "–", "57.1", "–"],
        ],
        "missing": ["ratatouille†, photo: data seed 1: 2 of 6 runs are not trained yet"],
    }
    return {
        "title": "All strategies on PACS",
        "name": "pacs",
        "mirepoix": "0.1.0",
        "source": "Ramé et al., 2023",
        "protocol": {"name": "corrected", "holdout": 0.2, "kept": ["best", "last"]},
        "selection": ["training-domain", "oracle"],
        "datasets": [
            {"name": "PACS", "targets": ["photo", "sketch"], "data_seeds": [0, 1, 2], "images": 1670}
        ],
        "auxiliaries": ["CIFAR-10", "VLCS"],
        "tables": [table, {**table, "title": "PACS, oracle", "missing": []}],
        "evidence": [evidence()],
        "rows": [{"key": "diwa", "label": "DiWA uniform", "equation": "1/M sum_i Train(theta_pt, D; c_i)"}],
        "plan": {"trainings": 1234, "to_train": 17, "splits": 6, "list": [{"training": "secret"}]},
        "seconds": 4000.0,
        "diverged": ["PACS without photo, data seed 0: fine-tuning, run 3"],
        "failed": {"measure PACS": "the disk is full"},
        "cautions": [{"level": "note", "text": "Images have 32 pixels."}],
        "notes": ["Auxiliary runs are shared."],
        "command": "mirepoix domainbed run pacs.toml",
        "environment": {"python": "3.11", "PyTorch": "2.9", "processors": 2},
        **more,
    }


class Seen(HTMLParser):
    """Texts, tables, what is bold within them, and identifiers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
            if "strong" in self.open:
                self.bold.append(data)


def written(out: Path, content: dict[str, Any]) -> tuple[str, str]:
    write_benchmark_report(content, out)
    return (out / "report.html").read_text("utf-8"), (out / "report.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "new" / "folder"
    content = sample()
    before = copy.deepcopy(content)
    write_benchmark_report(content, out)
    assert content == before
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.md").read_text("utf-8")


def test_tables_stand_on_the_page_as_they_came(page: str, text: str) -> None:
    tables = Seen(page).tables
    for given, found in zip(sample()["tables"], tables, strict=False):
        assert found == [given["columns"], *given["lines"]]
        assert given["title"] in page
    assert "| DiWA uniform | **92.0 ± 0.2** | **58.0** | **75.0** |" in text
    assert "ratatouille†, photo: data seed 1: 2 of 6 runs are not trained yet" in Seen(page).text
    assert "- ratatouille†, photo: data seed 1: 2 of 6 runs are not trained yet" in text


def test_the_best_of_each_column_is_bold_and_so_is_what_prints_alike(page: str) -> None:
    assert Seen(page).bold == ["58.0", "92.0 ± 0.2", "58.0", "75.0"] * 2


def test_a_single_number_is_not_the_best(tmp_path: Path) -> None:
    table = {"title": "t", "columns": ["Row", "photo"], "lines": [["a", "50.0"], ["b", "–"]]}
    page, text = written(tmp_path, {"tables": [table]})
    assert Seen(page).bold == []
    assert "| a | 50.0 |" in text


@pytest.mark.parametrize("where", ["page", "text"])
def test_everything_is_said(where: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(where)
    found = Seen(found).text if where == "page" else found
    for words in (
        "All strategies on PACS",
        "Ramé et al., 2023",
        "CIFAR-10, VLCS",
        "1,234 distinct trainings",
        "67 minutes",
        "1/M sum_i Train(theta_pt, D; c_i)",
        "PACS without photo, data seed 0: fine-tuning, run 3",
        "the disk is full",
        "Images have 32 pixels.",
        "Auxiliary runs are shared.",
        "mirepoix domainbed run pacs.toml",
        "PyTorch",
        "PACS without sketch, data seed 0",
        "no curve of one run.",
        "Not drawn: gain against diversity, inter-training: inter-training: 2 of 6 runs are not trained yet.",
        "A: VLCS, B: CIFAR-10, C: theta_pt.",
    ):
        assert words in found, words
    assert "secret" not in found


def test_cautions_come_before_the_tables_and_warnings_before_notes(page: str, text: str) -> None:
    for found, first, table in (
        (page, 'class="trust"', "<table"),
        (text, "## When not to trust it", "| Row |"),
    ):
        assert found.index(first) < found.index(table)
    levels = re.findall(r'<li class="(warning|note)">', page)
    assert levels == sorted(levels, reverse=True)
    assert {"warning", "note"} == set(levels)


@pytest.mark.parametrize(
    ("seeds", "level", "words"),
    [
        ([0], "Warning", "one data seed, so no number has an error"),
        ([0, 1], "Warning", "one standard error over 2 data seeds"),
        ([0, 1, 2], "Note", "one standard error over 3 data seeds"),
    ],
)
def test_data_seeds_say_what_the_error_is(tmp_path: Path, seeds: list[int], level: str, words: str) -> None:
    dataset = {"name": "PACS", "targets": ["photo"], "data_seeds": seeds}
    _, text = written(tmp_path, sample(datasets=[dataset], evidence=[]))
    (found,) = (each for each in text.splitlines() if words in each)
    assert found.startswith(f"- **{level}**: PACS: ")


def test_the_use_of_labels_of_the_target_is_said(tmp_path: Path, text: str) -> None:
    assert "**Warning**: The oracle tables choose by labels of the target" in text
    _, other = written(tmp_path, sample(selection=["training-domain", "leave-one-out"], evidence=[]))
    assert "**Note**: Labels of the target are in no choice" in other
    assert "oracle tables" not in other
    assert "The figures read labels" in text
    assert "The figures read labels" not in other


def test_missing_and_diverged_and_failed_are_warnings_only_if_there_are_any(
    tmp_path: Path, text: str
) -> None:
    for words in (
        "1 number behind the tables is missing",
        "1 training diverged",
        "1 training or measurement",
    ):
        assert f"**Warning**: {words}" in text
    tables = [{**table, "missing": []} for table in sample()["tables"]]
    _, other = written(tmp_path, sample(tables=tables, diverged=[], failed={}, evidence=[]))
    assert "missing" not in other
    assert "diverged" not in other
    assert "could not be carried out" not in other


def test_every_figure_is_on_the_page_and_in_a_file(folder: Path, page: str, text: str) -> None:
    drawings = re.findall(r'<svg viewBox.*?class="plot">.*?</svg>', page, re.DOTALL)
    files = sorted(path.name for path in (folder / "figures").iterdir())
    assert len(drawings) == len(files) == FIGURES
    assert sorted(re.findall(r"\(figures/(.*?)\)", text)) == files
    for name in files:
        root = ElementTree.parse(folder / "figures" / name).getroot()
        assert len(root.attrib["aria-label"]) > 40
    assert page.count("<figcaption>") == FIGURES
    assert not any(placeholder in page for placeholder, _ in COLORS.values())
    assert "var(--average)" in drawings[0]
    assert "prefers-color-scheme: dark" in page


def test_figures_of_several_splits_have_names_of_their_own(tmp_path: Path) -> None:
    page, _ = written(tmp_path, sample(evidence=[evidence("a b"), evidence("a-b")]))
    assert len(list((tmp_path / "figures").iterdir())) == 2 * FIGURES
    ids = Seen(page).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#|labelledby=")([\w-]+)', page)) <= set(ids)


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    assert "://" not in page
    assert not re.search(r"<script|<iframe|<img|@import|\son\w+=|url\((?!#)", page)
    assert set(re.findall(r'\b(?:href|src)="([^#"][^"]*)"', page)) == {"data:,"}


def test_names_of_strangers_are_harmless(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>|`*\x1b[31m"
    table = {"title": bad, "caption": bad, "columns": ["Row", bad], "lines": [[bad, bad]], "missing": [bad]}
    look = evidence(bad) | {"dataset": bad, "notes": [bad]}
    content = sample(title=bad, tables=[table], evidence=[look], failed={bad: bad}, environment={bad: bad})
    page, text = written(tmp_path, content)
    assert "<script" not in page
    assert "<script" not in text
    assert "\x1b" not in page + text
    assert all(re.fullmatch(r"[a-z0-9_]+\.svg", path.name) for path in (tmp_path / "figures").iterdir())


def test_equal_contents_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    write_benchmark_report(sample(), tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_tables_alone_make_a_page(tmp_path: Path) -> None:
    page, text = written(tmp_path, {"tables": sample()["tables"][1:]})
    assert "No figures were asked for." in page
    assert "No figures were asked for." in text
    assert "<h1>benchmark</h1>" in page


def test_a_split_without_numbers_says_why(tmp_path: Path) -> None:
    look = evidence()
    look["figures"] = {"share": {"kind": "accuracy_against_share", "missing": "no row"}}
    page, text = written(tmp_path, sample(evidence=[look]))
    assert "Not drawn: accuracy against the share of inter-trained members: no row." in page
    assert "The figures read labels" not in text
    assert list((tmp_path / "figures").iterdir()) == []


def test_contents_that_cannot_be_a_page_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="tables: expected at least one table, got none"):
        write_benchmark_report(sample(tables=[]), out)
    table = {"title": "t", "columns": ["Row", "photo"], "lines": [["a"]]}
    with pytest.raises(InputError, match="table 't': expected lines of 2 texts, one per column, got 1"):
        write_benchmark_report(sample(tables=[table]), out)
    look = evidence()
    look["figures"]["share"]["kind"] = "pie"
    with pytest.raises(InputError, match=r"evidence 'share': expected a figure of a kind .* got 'pie'"):
        write_benchmark_report(sample(evidence=[look]), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("seconds", "words"), [(59.6, "60 seconds"), (600, "10 minutes"), (9000, "2.5 hours")]
)
def test_times_have_a_unit_that_fits(tmp_path: Path, seconds: float, words: str) -> None:
    _, text = written(tmp_path, sample(seconds=seconds, evidence=[]))
    assert f"- **Time**: {words}" in text


def test_the_page_is_made_without_torch(tmp_path: Path) -> None:
    program = """
import json, sys, types
from pathlib import Path
import importlib.util
package = types.ModuleType("mirepoix")
package.__path__ = [str(Path(importlib.util.find_spec("mirepoix").origin).parent)]
sys.modules["mirepoix"] = package  # what the package itself imports is not the report's
sys.modules["torch"] = None
import mirepoix.report
mirepoix.report.write_benchmark_report(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""
    content = '{"tables": [{"title": "t", "columns": ["Row", "a"], "lines": [["b", "1.0"]]}]}'
    subprocess.run([sys.executable, "-c", program, content, str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / "report.html").is_file()
