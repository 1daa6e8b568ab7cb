import csv
import io
import re
import shutil
import subprocess

import pytest

from mirepoix.domainbed._cells import Cell
from mirepoix.domainbed._tables import comparisons, tables, trace
from mirepoix.types import InputError


def cell(row, target, data_seed, whole, **others):
    fields = {"dataset": "PACS", "label": row.upper(), "selection": "training-domain"}
    fields |= (
        {"sources": (f"weights/{row}-{data_seed}",)} if whole is not None else {"missing": "run 3 diverged"}
    )
    return Cell(row=row, target=target, data_seed=data_seed, whole=whole, **{**fields, **others})


SKETCH = (0.70, 0.71, 0.75)
CELLS = [
    *(cell("erm", "art", seed, 0.8, part=0.6) for seed in range(3)),
    *(cell("erm", "sketch", seed, value, part=value / 2) for seed, value in enumerate(SKETCH)),
    *(cell("diwa", "art", seed, 0.9) for seed in range(3)),
    *(cell("diwa", "sketch", seed, None if seed == 1 else 0.8) for seed in range(3)),
    *(cell("dagger", target, None, 0.85) for target in ("art", "sketch")),
]
VLCS = [cell("erm", "caltech", seed, 0.5 + seed / 10, dataset="VLCS") for seed in range(3)]


def test_a_table_in_markdown():
    assert tables(CELLS, "markdown", protocol="reference") == (
        "### PACS, training-domain validation\n"
        "\n"
        "Protocol reference; training-domain validation; accuracy on all images of the target domain, in "
        "percent; mean ± standard error over 3 data seeds.\n"
        "\n"
        "| Row | art | sketch | Avg |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| ERM | 80.0 ± 0.0 | 72.0 ± 1.2 | 76.0 |\n"
        "| DIWA | 90.0 ± 0.0 | – | – |\n"
        "| DAGGER | 85.0 | 85.0 | 85.0 |\n"
        "\n"
        "Missing:\n"
        "\n"
        "- DIWA, sketch: data seed 1: run 3 diverged\n"
    )


def test_the_measure_is_another_table():
    text = tables(CELLS[:6], measure="part", protocol="reference")
    assert "accuracy on the 80 % part of the target domain" in text
    assert "| ERM | 60.0 ± 0.0 | 36.0 ± 0.6 | 48.0 |" in text


def test_the_corrected_average_has_the_error_over_data_seeds():
    # Means over targets are 75, 75.5 and 77.5: 76 with a population deviation of 1.08, over the root of 3.
    assert "| ERM | 80.0 ± 0.0 | 72.0 ± 1.2 | 76.0 ± 0.6 |" in tables(CELLS, protocol="corrected")


def test_the_averages_use_the_same_measure():
    cells = [cell("erm", "art", 0, 0.8, part=0.6), cell("erm", "caltech", 0, 0.8, part=0.2, dataset="VLCS")]
    assert "| ERM | 60.0 | 20.0 | 40.0 |" in tables(cells, measure="part", protocol="p")
    means = [line["mean"] for line in read(tables(cells, "csv", "part", protocol="p"))]
    assert means == ["0.6", "0.2", "0.6", "0.2", "0.4"]


def test_one_data_seed_has_no_error_and_says_so():
    assert "in percent; one data seed, no error." in tables([cell("erm", "art", 4, 0.5)], protocol="p")
    only = tables([cell("erm", "art", None, 0.5)], protocol="p")
    assert "in percent." in only
    assert "| ERM | 50.0 | 50.0 |" in only


def test_several_datasets_have_a_table_of_averages():
    text = tables([*CELLS, *VLCS], protocol="p")
    titles = re.findall("### (.*)", text)
    assert titles == [f"{name}, training-domain validation" for name in ("PACS", "VLCS", "Averages")]
    averages = text[text.index("### Averages") :]
    assert "Averaged over target domains within each data seed first." in averages
    # ERM on PACS: per data seed .75, .755 and .775; on VLCS .5, .6 and .7.
    assert "| Row | PACS | VLCS | Avg |" in averages
    assert "| ERM | 76.0 ± 0.6 | 60.0 ± 4.7 | 68.0 |" in averages
    assert "| DIWA | – | – | – |" in averages
    assert "| DAGGER | 85.0 | – | – |" in averages
    assert "- DIWA, PACS: sketch: data seed 1: run 3 diverged\n" in averages
    assert "- DAGGER, VLCS: no cell\n" in averages


def test_selections_have_tables_of_their_own_in_a_fixed_order():
    kinds = ("oracle", "leave-one-out", "training-domain")
    text = tables([cell("erm", "art", 0, 0.5, selection=kind) for kind in kinds], protocol="p")
    assert re.findall("### PACS, (.*)", text) == [
        "training-domain validation",
        "leave-one-out validation",
        "oracle (test-domain validation)",
    ]


@pytest.mark.parametrize("format", ["markdown", "csv", "latex"])
def test_rows_and_columns_stand_in_the_order_given(format):
    def order(cells):
        text = tables(cells, format, protocol="p")
        rows = [re.search(name, text).start() for name in ("ERM", "DIWA", "DAGGER")]
        columns = [re.search(rf"\b{name}\b", text).start() for name in ("art", "sketch")]
        return rows == sorted(rows), columns == sorted(columns)

    cells = [each for each in CELLS if each.row != "diwa" or each.data_seed != 1]
    assert order(cells) == (True, True)
    assert order(cells[::-1]) == (False, False)


# CSV


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_one_line_per_entry():
    lines = read(tables([*CELLS, *VLCS], "csv", protocol="reference"))
    found = {(line["dataset"], line["row"], line["target"]): line for line in lines}
    assert len(found) == len(lines) == 6 + 1 + 3 + 1 + 3
    erm = found["PACS", "erm", "sketch"]
    assert float(erm["mean"]) == pytest.approx(0.72)
    assert float(erm["error"]) == pytest.approx(0.0124722)
    assert (erm["label"], erm["count"], erm["missing"]) == ("ERM", "3", "")
    assert {line["protocol"] for line in lines} == {"reference"}
    assert {line["measure"] for line in lines} == {"whole"}
    assert {line["selection"] for line in lines} == {"training-domain"}
    diwa = found["PACS", "diwa", "sketch"]
    assert (diwa["mean"], diwa["error"], diwa["count"]) == ("", "", "2")
    assert diwa["missing"] == "data seed 1: run 3 diverged"
    assert float(found["PACS", "erm", ""]["mean"]) == pytest.approx(0.76)
    assert float(found["PACS", "erm", ""]["error"]) == pytest.approx(0.0062361, abs=1e-6)
    assert float(found["", "erm", ""]["mean"]) == pytest.approx(0.68)
    assert found["PACS", "dagger", "art"]["error"] == ""


def test_csv_of_one_dataset_has_no_average_over_datasets():
    assert all(line["dataset"] for line in read(tables(CELLS, "csv", protocol="p")))


def test_csv_quotes_what_it_must():
    odd = cell("a,b", 'the "x"', 0, None, missing="first\nsecond", label="l;m")
    line = read(tables([odd], "csv", protocol="p,q"))[0]
    assert (line["row"], line["target"], line["protocol"]) == ("a,b", 'the "x"', "p,q")
    assert line["missing"] == "data seed 0: first\nsecond"


# Escaping

ODD = "a|b_c*d%e&f#g$h{i}j\\k^l~m<n>\"o'p`q[r]_s_ é é λ 中 ∞ ±†\n\tt"


def odd_cells():
    return [
        cell("odd", "tar_get", 0, 0.5, label=ODD),
        cell("[x]", "tar_get", 0, None, missing=f"because {ODD}", label="[x]"),
    ]


def test_markdown_is_escaped():
    text = tables(odd_cells(), protocol="a_b|c")
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    assert row == (
        r"| a\|b_c\*d%e&amp;f#g$h{i}j\\k^l\~m&lt;n&gt;"
        + "\"o'p"
        + r"\`q\[r\]\_s\_ é é λ 中 ∞ ±† t | 50.0 | 50.0 |"
    )
    assert "Protocol a_b\\|c;" in text
    assert "\t" not in text


def test_latex_is_escaped():
    text = tables(odd_cells(), "latex", protocol="a_b")
    assert (
        r"a\textbar{}b\_c*d\%e\&f\#g\$h\{i\}j\textbackslash{}k\textasciicircum{}l\textasciitilde{}m" in text
    )
    assert r"\textless{}n\textgreater{}''o" in text
    assert r"$\lambda$ (U+4E2D) (U+221E) $\pm$\dag{} t & 50.0 & 50.0 \\" in text
    assert r"{}[x] & -- & -- \\" in text
    assert r"tar\_get" in text
    assert re.search(r"(?<!\\)_", text) is None


def test_a_table_in_latex():
    assert tables(CELLS, "latex", protocol="reference") == "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\small",
            r"\caption{PACS, training-domain validation. Protocol reference; training-domain validation; "
            r"accuracy on all images of the target domain, in percent; mean $\pm$ standard error over 3 data "
            r"seeds.}",
            r"\begin{tabular}{lrrr}",
            r"\hline",
            r"{}Row & art & sketch & Avg \\",
            r"\hline",
            r"{}ERM & 80.0 $\pm$ 0.0 & 72.0 $\pm$ 1.2 & 76.0 \\",
            r"{}DIWA & 90.0 $\pm$ 0.0 & -- & -- \\",
            r"{}DAGGER & 85.0 & 85.0 & 85.0 \\",
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            r"\noindent Missing in PACS, training-domain validation:",
            r"\begin{itemize}",
            r"\item {}DIWA, sketch: data seed 1: run 3 diverged",
            r"\end{itemize}",
            "",
        ]
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    text = tables([*CELLS, *VLCS, *odd_cells()], "latex", protocol=ODD)
    page = "\\documentclass{article}\n\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]


# The way back


def test_a_cell_is_traced_to_its_records():
    chosen = cell(
        "diwa",
        "sketch",
        2,
        0.8,
        part=0.79,
        id_accuracy=0.955,
        members=2,
        inference_cost=2,
        sources=("weights/a", "weights/b"),
        choice={"kept": [0, 1], "coefficient": 0.5},
        selection="leave-one-out",
    )
    assert trace([*CELLS, chosen], "PACS", "diwa", "sketch", selection="leave-one-out") == (
        "PACS, DIWA (diwa), target sketch, leave-one-out, data seed 2\n"
        "  80.0 on all images, 79.0 on the 80 % part, 95.5 on ID validation, 2 members, inference cost 2\n"
        "  chosen: kept [0, 1], coefficient 0.5\n"
        "  from: weights/a\n"
        "        weights/b"
    )
    assert trace([*CELLS, chosen], "PACS", "DIWA", "sketch", data_seed=1) == (
        "PACS, DIWA (diwa), target sketch, training-domain, data seed 1\n"
        "  1 member, inference cost 1\n"
        "  missing: run 3 diverged"
    )


def test_every_cell_of_a_number_is_traced():
    text = trace(CELLS[::-1], "PACS", "erm", "sketch")
    assert re.findall(r"data seed (\d)", text) == ["0", "1", "2"]
    assert re.findall("from: (.*)", text) == ["weights/erm-0", "weights/erm-1", "weights/erm-2"]
    assert "all data seeds" in trace(CELLS, "PACS", "dagger", "art")


def test_a_cell_that_is_not_there_names_those_that_are():
    with pytest.raises(
        InputError, match=r"row swad \(there: erm, diwa, dagger\); target art \(there: art, sketch\)"
    ):
        trace(CELLS, "PACS", "swad", "art")
    with pytest.raises(InputError, match=r"target caltech \(there: none\)"):
        trace(CELLS, "VLCS", "erm", "caltech")
    with pytest.raises(InputError, match=r"data_seed 9 \(there: 0, 1, 2, None\), got none of 14 cells"):
        trace(CELLS, "PACS", "erm", "art", data_seed=9)


def test_what_is_no_table_is_refused():
    with pytest.raises(InputError, match="format: expected one of markdown, csv, latex, got 'html'"):
        tables(CELLS, "html", protocol="p")
    with pytest.raises(InputError, match="expected at least one cell, got none"):
        tables([], protocol="p")


def test_rows_are_compared_with_a_baseline_on_the_same_splits():
    cells = [
        *(cell("fine_tuning", t, s, 0.5 + s / 10) for t in ("art", "sketch") for s in (0, 1)),
        # Gains 4, 2 in seed 0 and 0, -2 in seed 1: means 3 and -1, so 1.0 with a population deviation of 2 over root 2.
        *(cell("diwa", t, s, 0.5 + s / 10 + g) for t, s, g in GAINS),
        *(cell("dagger", t, None, 0.9) for t in ("art", "sketch")),
    ]
    (table,) = comparisons(cells)
    assert [line[:3] for line in table.lines] == [
        ("FINE_TUNING", "–", "–"),
        ("DIWA", "+1.0 ± 1.4", "2 of 4"),
        ("DAGGER", "–", "–"),
    ]
    assert "against FINE_TUNING" in table.title
    one_seed = [each for each in cells if each.data_seed == 0]
    assert comparisons(one_seed)[0].lines[1][1:3] == ("+3.0", "2 of 2")
    assert comparisons(cells[4:]) == []  # no baseline, no comparison


GAINS = [("art", 0, 0.04), ("sketch", 0, 0.02), ("art", 1, 0.0), ("sketch", 1, -0.02)]
