"""A Markdown extension: formulas become MathML when the site is built; browsers show MathML without a script.

Markdown has formulas as `$...$` within a line and as `$$` blocks. pymdownx.arithmatex finds them and leaves their LaTeX
in elements of the class `arithmatex`; this extension converts each into a `<math>` element.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

__all__ = ["as_mathml", "makeExtension"]

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
"""the output of arithmatex with `generic: true`"""


class _Formulas(Postprocessor):
    """Replaces the elements of arithmatex."""

    def run(self, text: str) -> str:
        """Return the HTML of a page with its formulas as MathML."""
        return FORMULA.sub(lambda found: _element(html.unescape(found[3]), block=found[2] == "["), text)


class _Extension(Extension):
    """Runs after all other extensions."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the replacement."""
        md.postprocessors.register(_Formulas(md), "mathml", 0)


def makeExtension(**how: Any) -> Extension:
    """Return the extension."""
    return _Extension(**how)


def _element(latex: str, *, block: bool) -> str:
    """Return a formula within its line, or as a box that scrolls where the screen is narrower (docs/tables.css)."""
    found = as_mathml(latex, block=block)
    return f'<div class="formula" tabindex="0">{found}</div>' if block else found


def as_mathml(latex: str, *, block: bool) -> str:
    r"""Return a formula as a `<math>` element.

    Args:
        latex: the formula, without the dollar signs.
        block: whether it is a block instead of inline.

    Raises:
        ValueError: the formula has a command or a brace that the converter does not know; the build then fails.

    >>> as_mathml("x", block=False)
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>'
    """
    try:
        found = convert(latex, display="block" if block else "inline")
    except Exception as error:  # latex2mathml has no base class of its errors
        raise ValueError(f"formula {latex!r}: {type(error).__name__} {error}") from None
    if unknown := re.search(r"\\\w+", found):
        raise ValueError(f"formula {latex!r}: {unknown[0]} is unknown to latex2mathml")
    return found
