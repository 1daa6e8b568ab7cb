"""What a job or a benchmark found, on one page: is the average good, why, and when not to trust it."""

from mirepoix.report._benchmark import write_benchmark_report
from mirepoix.report._explanation import explanation_html, write_explanation
from mirepoix.report._files import FORMAT, read_report, write_report
from mirepoix.report._html import html
from mirepoix.report._markdown import markdown
from mirepoix.report._terminal import terminal_table

__all__ = [
    "FORMAT",
    "explanation_html",
    "html",
    "markdown",
    "read_report",
    "terminal_table",
    "write_benchmark_report",
    "write_explanation",
    "write_report",
]
