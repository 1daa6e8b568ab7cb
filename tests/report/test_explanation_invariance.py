"""The section on source domains: it is there when it was asked for, with the numbers that were computed."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.evidence.explain_samples import apart, block, source
from tests.report.explanation_samples import invariance, sample_pages, samples

from mirepoix.evidence._explain import explain
from mirepoix.report._explanation import explanation_html
from mirepoix.report._explanation_figures import shown_figures
from mirepoix.report._explanation_invariance import _number, draw_invariance, invariance_of

HEAD = "Is it invariant across the source domains?"
ALONE = ("area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr")


class Nesting(HTMLParser):
    """Elements that are open; an end that is of no open element is an error."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag


def section(page):
    return page[page.index('<section aria-labelledby="invariance">') :].partition("</section>")[0]


def test_the_section_is_there_when_there_are_numbers():
    pages = sample_pages()
    assert f"4. {HEAD}" in pages["invariance"]
    assert "5. What the words mean" in pages["invariance"]
    assert "6. How it was measured" in pages["invariance"]
    for name in set(pages) - {"invariance"}:
        assert HEAD not in pages[name]
        assert "4. What the words mean" in pages[name]
    old = {key: value for key, value in samples()["clear"].items() if key != "invariance"}
    assert HEAD not in explanation_html(old)


def test_elements_are_closed_in_order():
    for page in sample_pages().values():
        nesting = Nesting()
        nesting.feed(page)
        nesting.close()
        assert nesting.open == []


def test_tables_have_the_numbers_that_were_computed():
    content = samples()["invariance"]
    found = content["invariance"]
    page = section(sample_pages()["invariance"])
    cells = re.findall(r"<td>([^<]*)</td>", page)
    for row in found["rows"]:
        for quantity in ("risk", "gradient_variance", "hessian_diagonal"):
            text = f"{_number(row['distance'][quantity])} ({_number(row['chance'][quantity])})"
            assert text in cells
    for row in found["blocks"][0]["rows"]:
        for domain in row["domains"].values():
            assert f"{domain['risk']:.3f}" in cells
            assert f"{domain['cosine']:.2f}" in cells or f"{domain['cosine']:.5f}" in cells
        if row["seen"]["risk"]:
            assert f"{_number(row['distance']['risk'])} ({_number(row['chance']['risk'])}), seen" in cells
    assert any(row["seen"]["risk"] for row in found["blocks"][0]["rows"])
    heads = re.findall(r'<th scope="row">([^<]*)</th>', page)
    assert (
        heads
        == ["Start", "Mean member", "Average of weights"]
        + [
            "Start",
            "run-0",
            "run-1",
            "Average of weights",
        ]
        * 3
    )
    words = " ".join(page.split())
    assert found["answer"][0].split(".")[0] in words
    assert "<i>x" not in page
    assert "&lt;i&gt;x" in page
    assert "\x07" not in page


def test_the_words_of_the_section_are_explained():
    page = sample_pages()["invariance"]
    text = page[page.index('id="words"') : page.index('id="how"')]
    for word in ("Source domain", "Gradient variance", "Curvature"):
        assert f"<dt>{word}</dt>" in text
        assert f"<dt>{word}</dt>" not in sample_pages()["clear"]
    assert "the mean of 19 shuffles" in " ".join(page[page.index('id="how"') :].split())


def test_the_figure_shows_distances_in_multiples_of_chance():
    content = samples()["invariance"]
    (figure,) = [one for one in shown_figures(content) if one.drawn.plot.name == "invariance"]
    assert figure.drawn.columns[:4] == ("weights", "quantity", "distance", "chance")
    assert len(figure.drawn.rows) == 9
    for name, quantity, distance, chance, seen, of in figure.drawn.rows:
        row = next(one for one in content["invariance"]["rows"] if one["name"] == name)
        assert (distance, chance) == (row["distance"][quantity], row["chance"][quantity])
        assert (seen, of) == (row["seen"][quantity], row["of"])
    assert figure.reading == content["invariance"]["answer"][1]


def test_nothing_is_drawn_where_nothing_can_be_compared():
    content = json.loads(json.dumps(samples()["invariance"]))
    for row in content["invariance"]["rows"]:
        row["chance"] = dict.fromkeys(row["chance"], 0.0)
    assert draw_invariance(content) is None
    content["invariance"]["rows"] = []
    assert draw_invariance(content) is None
    assert draw_invariance(samples()["clear"]) is None
    found = invariance()
    one = invariance("alone").blocks[0]
    domain = one.domains[0]
    bare = {
        name: replace(
            each,
            domains={domain: each.domains[domain]},
            pairs={},
            distance=None,
            chance=None,
            reached=dict.fromkeys(each.reached, 0),
            shuffles=0,
        )
        for name, each in one.found.items()
    }
    found = replace(found, blocks=(replace(one, domains=(domain,), found=bare),))
    content = explain(source(block(apart(), apart())), resamples=100, invariance=found)
    assert invariance_of(content).table.lines == ()
    page = section(explanation_html(content))
    assert "there is nothing to compare" in page
    assert "Squared distances" not in page
    assert "Mean loss on each source domain" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.9, "0.90"), (0.00041, "0.00041"), (3.8e-6, "3.8e-06"), (1234.5, "1,234"), (None, "n/a")],
)
def test_distances_have_two_digits(value, text):
    assert _number(value) == (text if value is not None else _number(None))
