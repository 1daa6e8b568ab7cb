"""For the site: docstrings are Google style with reStructuredText mathematics, shown here as plain code.

The site loads no script from elsewhere, so a formula is printed as it is written.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

BLOCK = re.compile(r"^( *)\.\. math::[ ]?(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", re.MULTILINE)


def readable(text: str) -> str:
    """The docstring in Markdown."""

    def block(found: re.Match[str]) -> str:
        indent, body = found[1], found[2]
        first, _, rest = body.partition("\n")
        lines = [first.strip(), *textwrap.dedent(rest).splitlines()]
        return "\n".join(indent + line for line in ["```", *filter(str.strip, lines), "```"])

    text = BLOCK.sub(block, text)
    text = re.sub(r":math:`([^`]*)`", lambda found: f"`{' '.join(found[1].split())}`", text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
