"""The page as one HTML file: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from mirepoix.report._figures import plots
from mirepoix.report._page import page

__all__ = ["html"]


def html(report: Mapping[str, Any]) -> str:
    """The report as one self-contained page for any browser, screen or paper."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(files("mirepoix.report").joinpath("template.html").read_text("utf-8"))
    figures = [
        # Markup: the drawing is ours, and names within it were escaped when it was drawn.
        {"section": p.section, "small": p.small, "caption": p.caption, "svg": Markup(p.svg(inline=True))}
        for p in plots(report)
    ]
    return template.render(page=page(report), figures=figures)
