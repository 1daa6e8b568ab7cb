"""The page as one HTML file: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mirepoix.report._figures import plots
from mirepoix.report._page import page

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["html", "page_template"]


def html(report: Mapping[str, Any]) -> str:
    """The report as one self-contained page for any browser, screen or paper."""
    from markupsafe import Markup

    figures = [
        # Markup: the drawing is ours, and names within it were escaped when it was drawn.
        {"section": p.section, "small": p.small, "caption": p.caption, "svg": Markup(p.svg(inline=True))}
        for p in plots(report)
    ]
    return page_template().render(page=page(report), figures=figures)


def page_template(name: str | None = None) -> Template:
    """The template of a page, escaping by default: that of the report, or another body under the same head.

    Args:
        name: File with the rest of the style and the body.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    folder = files("mirepoix.report")
    text = folder.joinpath("template.html").read_text("utf-8")
    if name is not None:
        head, end, _ = text.partition("</style>\n")
        text = head + end + folder.joinpath(name).read_text("utf-8")
    return environment.from_string(text)
