"""The page of a comparison, from hand-made numbers."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mirepoix.report import read_report, terminal_table, write_report
from mirepoix.report._comparison import accuracies, comparison_texts, narrowed


def row(label: str, accuracy: float | None, error: float | None = 0.002, **more: Any) -> dict[str, Any]:
    measures = {
        "accuracy": (accuracy, error),
        "member_accuracy": (None if accuracy is None else accuracy - 0.02, error),
        "accuracy_of_probabilities": (accuracy, error),
        "nll": (0.5, 0.01),
        "calibrated_nll": (0.45, 0.01),
        "temperature": (1.5, 0.1),
        "ece": (0.031, 0.002),
        "brier": (0.2, 0.01),
        "ratio_error": (0.8, 0.02),
        "normalised_difference": (0.7, 0.01),
        "disagreement": (0.12, 0.01),
        "soup_accuracy": (None, None),
        "members": (5, 0),
        "parameters": (1_360_000, 0),
        "forward_cost": (5.0, 0),
        "updates": (1000, 0),
        "seconds": (321.5, 3.0),
    }
    measures |= more.pop("measures", {})
    return {
        "label": label,
        "kind": "deep_ensemble",
        "equation": "theta_i = Train(theta_pt, D; c_i)",
        "objective": "erm",
        "later": None,
        "asked": 5,
        "measures": {name: {"mean": mean, "error": spread} for name, (mean, spread) in measures.items()},
        "difference": {"mean": 0.004, "low": -0.001, "high": 0.009, "better": 2, "trials": 3},
        "trials": [{"accuracy": accuracy}] * 3,
        **more,
    }


def report(**more: Any) -> dict[str, Any]:
    points = [
        {
            "step": step,
            "accuracy": 0.5 + step / 1000,
            "member_accuracy": 0.45 + step / 1000,
            "ratio_error": 0.7,
            "terms": {"redundancy": 1.0 - step / 100, "nll": 2.0},
        }
        for step in (1, 50, 99)
    ]
    plain = [{**point, "terms": {}, "ratio_error": "infinite"} for point in points]
    return {
        "format": 1,
        "kind": "comparison",
        "mirepoix": "0.1",
        "name": "mine",
        "title": "Ensembles of mine",
        "source": "A paper (2023)",
        "task": {
            "name": "CIFAR10",
            "classes": ["cat", "dog"],
            "domains": [{"name": "train", "images": 50_000}, {"name": "test", "images": 10_000}],
            "notes": [],
        },
        "target": "test",
        "start": "cifar_resnet20, pre-trained weights from a.th",
        "network": "cifar_resnet20",
        "baseline": "Local DE",
        "protocol": {"trials": [0, 1, 2], "holdout": 0.1},
        "rows": [
            row("Local DE", 0.91, difference=None),
            row("Star", 0.914, measures={"soup_accuracy": (0.905, 0.001), "ratio_error": ("infinite", None)}),
            row("Lost", None, None, difference=None),
        ],
        "members": [
            {
                "system": "Local DE",
                "trial": 0,
                "number": 1,
                "status": "finished",
                "message": None,
                "id_accuracy": 0.9,
                "accuracies": [0.89],
                "seconds": 10.0,
                "configuration": {"steps": 200, "learning_rate": 0.05, "seed": 3},
            },
            {
                "system": "Lost",
                "trial": 0,
                "number": 1,
                "status": "diverged",
                "message": "the loss was nan",
                "id_accuracy": None,
                "accuracies": [],
                "seconds": None,
                "configuration": {},
            },
        ],
        "along": [
            {"system": "DICE", "trial": 0, "network": 1, "points": points},
            {"system": "DICE", "trial": 1, "network": 1, "points": points},
            {"system": "Ind.", "trial": 0, "network": 1, "points": plain},
        ],
        "verdict": "Highest accuracy: Star.",
        "trust": [
            {"level": "warning", "text": "Lost has no member."},
            {"level": "note", "text": "Be careful."},
        ],
        "environment": {"torch": "2.9"},
        "command": "mirepoix run mine.toml",
        **more,
    }


def cells(table):
    return [[cell.text for cell in line] for line in table.lines]


def test_accuracies_are_percent_with_differences_and_the_best_is_marked():
    table = accuracies(report())
    assert table.columns == (
        "System",
        "Accuracy",
        "Difference",
        "Mean member",
        "Probabilities averaged",
        "Weights averaged",
        "Members",
        "Forwards",
    )
    assert cells(table)[0] == [
        "Local DE",
        "91.00 ± 0.20",
        "–",
        "89.00 ± 0.20",
        "91.00 ± 0.20",
        "n/a",
        "5",
        "5×",
    ]
    assert cells(table)[1][1:3] == ["91.40 ± 0.20", "+0.40 (−0.10 to +0.90)"]
    assert cells(table)[2][1] == "n/a"
    assert [line[1].best for line in table.lines] == [False, True, False]
    assert len(narrowed(table).columns) == 3


def test_one_trial_has_no_errors():
    single = report(protocol={"trials": [0]})
    for each in single["rows"]:
        for measure in each["measures"].values():
            measure["error"] = None
        each["trials"] = each["trials"][:1]
        if each["difference"]:
            each["difference"] |= {"low": None, "high": None}
    assert cells(accuracies(single))[1][1:3] == ["91.40", "+0.40"]
    assert "one trial" in comparison_texts(single)["report.md"]


def test_lower_is_better_for_losses():
    content = report()
    content["rows"][0]["measures"]["nll"]["mean"] = 0.3
    assert "**0.300 ± 0.010**" in comparison_texts(content)["report.md"]


def test_every_number_is_on_the_page():
    for text in (comparison_texts(report())[name] for name in ("report.md", "report.html")):
        for piece in (
            "Ensembles of mine",
            "91.40 ± 0.20",
            "0.450 ± 0.010",
            "3.10 ± 0.20",
            "0.800 ± 0.020",
            "70.0 ± 1.0",
            "12.00 ± 1.00",
            "∞",
            "1.36",
            "321.5",
            "Highest accuracy: Star.",
            "Be careful.",
            "Local DE in the same trials",
            "the loss was nan",
            "mirepoix run mine.toml",
            "tested on test (10,000 images), trained on train (50,000 images",
        ):
            assert piece in text, piece


def test_figures_are_drawn_and_named():
    texts = comparison_texts(report())
    names = {name for name in texts if name.startswith("figures/")}
    assert names == {
        f"figures/{name}.svg"
        for name in ("systems", "along_redundancy", "along_ratio_error", "along_accuracy")
    }
    for name in names:
        ElementTree.fromstring(texts[name])
    assert texts["report.html"].count("<svg") == 4
    page = texts["report.md"]
    # A system without a finite value, or without the term, has no line.
    assert "At the end: DICE 0.01." in page
    assert "At the end: DICE 0.7." in page
    assert "At the end: DICE 59.9; Ind. 59.9; DICE, mean member, 54.9; Ind., mean member, 54.9." in page


def test_without_dynamics_there_is_no_such_section():
    texts = comparison_texts(report(along=[]))
    assert "Along training" not in texts["report.md"]
    assert "Along training" not in texts["report.html"]
    assert "4. Details" in texts["report.html"]
    assert "5. Details" in comparison_texts(report())["report.html"]


def test_names_of_strangers_are_only_text():
    content = report(title="<script>x</script>", name="mine")
    content["rows"][0]["label"] = "A|B <b>*c*</b>\n\x1b[31m"
    content["along"][0]["system"] = '"><script>'
    texts = comparison_texts(content)
    assert "<script>" not in texts["report.html"]
    assert "\x1b" not in texts["report.html"] + texts["report.md"]
    assert re.search(r"^\| A\\\|B &lt;b&gt;", texts["report.md"], re.MULTILINE)
    for name, text in texts.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)


def test_files_are_written_and_read_again(tmp_path):
    content = report()
    before = copy.deepcopy(content)
    files = write_report(content, tmp_path)
    assert content == before
    assert files[0].name == "report.json"
    assert files[-1].name == "report.html"
    assert read_report(tmp_path) == content
    first = {path: path.read_bytes() for path in files}
    write_report(content, tmp_path)
    assert first == {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(("width", "columns"), [(140, 8), (60, 3)])
def test_the_table_fits_a_terminal(width, columns):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(report()))
    console.file.close()
    text = console.export_text()
    assert "Accuracy on test, percent" in text
    assert ("Forwards" in text) == (columns == 8)
