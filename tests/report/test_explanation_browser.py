from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.explanation_samples import sample_pages

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium; on Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("explanations")
    found = {}
    for name, page in sample_pages().items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        found[name] = (folder / f"{name}.html").as_uri()
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["several", "many", "one", "tiny"])
def test_the_page_fits_and_is_silent(
    browser: Any, pages: dict[str, str], name: str, width: int, theme: str
) -> None:
    said: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=theme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(pages[name])
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name]]
    page.close()


@pytest.mark.parametrize("name", ["several", "clear", "tiny"])
def test_a_phone_shows_the_verdict_without_scrolling(browser: Any, pages: dict[str, str], name: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(pages[name])
    bottom = page.evaluate("document.querySelector('.verdict').getBoundingClientRect().bottom")
    assert bottom < 740
    page.close()


def test_themes_reach_the_drawings(browser: Any, pages: dict[str, str]) -> None:
    script = """() => {
        const lines = [...document.querySelectorAll('.plot path')];
        const line = lines.find(each => /stroke: var/.test(each.getAttribute('style')));
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(line).stroke];
    }"""
    seen = []
    for theme in ("light", "dark"):
        page = browser.new_page(color_scheme=theme)
        page.goto(pages["several"])
        seen.append(page.evaluate(script))
        page.close()
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_paper_shows_what_the_screen_folds_away(browser: Any, pages: dict[str, str]) -> None:
    page = browser.new_page()
    page.goto(pages["several"])
    details = "getComputedStyle(document.querySelector('details'), '::details-content').contentVisibility"
    assert page.evaluate(details) == "hidden"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(details) == "visible"
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--surface')") == "#fff"
    page.close()
