"""The page of an explanation: what it says first, what it draws, and what it writes."""

import csv
import json
import re

import pytest
from tests.report.explanation_samples import sample_pages, samples

from mirepoix.report._explanation import explanation_html, write_explanation
from mirepoix.report._explanation_figures import _fisher, _undrawn, shown_figures


@pytest.fixture(scope="module")
def contents():
    return samples()


@pytest.fixture(scope="module")
def pages():
    return sample_pages()


def names_of(content):
    return [figure.drawn.plot.name for figure in shown_figures(content)]


def plain(page):
    """The text of a page."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&#39;", "'").split())


def test_the_verdict_comes_first(contents, pages):
    for name, page in pages.items():
        text = plain(page)
        sentences = contents[name]["verdict"]["sentences"]
        words = [" ".join(sentence.split()) for sentence in sentences]
        escaped = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        places = [escaped.index(f"What to ship? {words[0]}"), escaped.index(words[1])]
        places.append(escaped.index("1. What was compared"))
        assert places == sorted(places)
        assert places[-1] < 1500, f"{name}: the verdict is not short"


def test_trust_is_answered_in_a_word(pages):
    assert "Trust it? Yes." in plain(pages["clear"])
    assert "Trust it? Not yet." in plain(pages["id"])
    assert "Trust it? Not yet." in plain(pages["tiny"])


def test_the_arrow_marks_what_to_ship(pages):
    marked = re.findall(r'<th scope="row">➜ ([^<]*)</th>', pages["clear"])
    assert marked == ["Average of weights"]
    line = re.search(r'<th scope="row">➜ .*?</tr>', pages["clear"], re.DOTALL)[0]
    assert "98.0 (" in line
    assert "+13.0" in line


def test_every_word_of_the_verdict_is_explained(pages):
    text = plain(pages["clear"])
    words = text[text.index("4. What the words mean") : text.index("5. How it was measured")]
    for word in ("Member", "ID, OOD", "Mean member", "Ensemble", "Forward", "Interval"):
        assert word in words
    assert "WiSE" not in words
    several = plain(pages["several"])
    assert "WiSE" in several[several.index("4. What the words mean") :]
    assert 'href="#words"' in pages["clear"]
    assert 'id="words"' in pages["clear"]


def test_figures_are_drawn_where_there_are_numbers(contents):
    # Members of this sample never fail together, so the ratio-error is infinite and cannot be drawn.
    assert names_of(contents["clear"]) == ["differences", "members", "reliability", "loss", "errors_0"]
    assert names_of(contents["several"])[:5] == [
        "differences",
        "members",
        "gain_against_diversity",
        "diversity",
        "reliability",
    ]
    assert names_of(contents["one"]) == []
    assert "There is nothing to draw" in explanation_html(contents["one"])
    assert "errors_0" in names_of(contents["many"])


def test_each_figure_has_a_sentence_and_names_of_its_own(contents, pages):
    for name, content in contents.items():
        figures = shown_figures(content)
        assert len({figure.drawn.plot.name for figure in figures}) == len(figures)
        for figure in figures:
            assert figure.reading.endswith("."), figure.drawn.plot.name
            assert figure.title
        assert pages[name].count('class="reading"') == len(figures)
        found = re.findall(r'\bid="([^"]+)"', pages[name])
        assert len(found) == len(set(found)), name


def test_images_that_targets_share_are_told(pages):
    assert "400 different images of ID validation, shared by the targets" in plain(pages["several"])
    assert "different images" not in plain(pages["clear"])


def test_members_of_unknown_origin_are_not_called_fine_tuned(pages):
    assert "fine-tuned" not in plain(pages["clear"])


def test_intervals_are_of_95_percent_and_answers_in_plain_words(contents):
    for name, content in contents.items():
        figures = {figure.drawn.plot.name: figure for figure in shown_figures(content)}
        for figure in figures.values():
            assert "standard error" not in figure.drawn.plot.caption, name
            assert "wrong by" not in figure.reading
        if "gain_against_diversity" in figures:
            answer = figures["gain_against_diversity"].reading
            assert answer.startswith(("Yes: ", "No: ", "This cannot be told")), name
            assert "slope" not in answer
            assert "correlation" not in answer


def test_what_cannot_be_drawn_is_said():
    rows = [
        ("a", "ood", "ratio_error", "infinite", None, None),
        ("b", "id", "ratio_error", 2.0, None, None),
        ("c", "id", "ratio_error", 2.0, 1.0, 3.0),
    ]
    assert _undrawn(rows[2:]) == ""
    assert "infinite or undefined: a (OOD)." in _undrawn(rows)
    assert "A dot without a bar" in _undrawn(rows)


def test_a_correlation_of_few_dots_tells_nothing():
    assert _fisher(0.9, 3) == (-1.0, 1.0)
    low, high = _fisher(0.5, 28)  # atanh(0.5) ± 1.96 / 5
    assert (low, high) == pytest.approx((0.1559, 0.7357), abs=1e-3)


def test_names_of_strangers_stay_text(pages):
    assert "<b>&amp;" not in pages["several"]
    assert "&lt;b&gt;" in pages["several"]
    assert "\x07" not in pages["several"]


def test_the_page_needs_nothing_else(pages):
    for page in pages.values():
        assert "<script" not in page
        assert not re.search(r'(?:src|href)="(?!#|data:)', page)
        assert "nan" not in plain(page).lower().split()
        assert "None" not in plain(page)


def test_files_are_whole_and_the_same_again(contents, tmp_path):
    page = write_explanation(contents["clear"], tmp_path / "a")
    assert page == tmp_path / "a" / "explanation.html"
    assert json.loads((tmp_path / "a" / "explanation.json").read_text()) == json.loads(
        json.dumps(contents["clear"])
    )
    names = names_of(contents["clear"])
    written = {path.name for path in (tmp_path / "a" / "figures").iterdir()}
    assert written == {f"{name}.{ending}" for name in names for ending in ("svg", "png", "csv")}
    with (tmp_path / "a" / "figures" / "differences.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["side", "first", "second", "difference", "low", "high", "seen"]
    found = {tuple(row[:3]): float(row[3]) for row in rows[1:]}
    told = {
        (one["side"], one["first"], one["second"]): one["value"]
        for one in contents["clear"]["total"]["comparisons"]
    }
    assert found == {key: pytest.approx(told[key]) for key in found}
    write_explanation(contents["clear"], tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_parquet_is_written_when_asked_for(contents, tmp_path):
    pytest.importorskip("pyarrow")
    write_explanation(contents["ood"], tmp_path, parquet=True)
    assert (tmp_path / "figures" / "differences.parquet").is_file()


def test_many_targets_are_told_and_not_drawn(contents):
    content = json.loads(json.dumps(contents["several"]))
    content["blocks"] = content["blocks"] * 4
    assert not any(name.startswith("errors_") for name in names_of(content))
    assert "More than 8 targets" in explanation_html(content)
