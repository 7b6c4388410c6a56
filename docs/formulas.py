"""A hook of mkdocs: formulas become MathML while the site is built, which browsers show without any script.

Markdown has formulas as `$...$` within a line and as `$$` blocks. pymdownx.arithmatex finds them and leaves their LaTeX
in elements of the class `arithmatex`; here each becomes a `<math>` element.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

__all__ = ["as_mathml", "on_page_content"]

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
"""what arithmatex writes with `generic: true`"""


def on_page_content(html_of_page: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas as MathML; mkdocs calls this for every page."""
    return FORMULA.sub(lambda found: as_mathml(html.unescape(found[3]), block=found[2] == "["), html_of_page)


def as_mathml(latex: str, *, block: bool) -> str:
    r"""Return a formula as a `<math>` element.

    Args:
        latex: the formula, without the signs around it.
        block: whether it stands on a line of its own.

    Raises:
        PluginError: the formula has a command or a brace that the converter does not know; the build then ends.

    >>> as_mathml("x", block=False)
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>'
    """
    try:
        found = convert(latex, display="block" if block else "inline")
    except Exception as error:  # latex2mathml has no base class of its errors
        raise PluginError(f"formula {latex!r}: {type(error).__name__} {error}") from None
    if unknown := re.search(r"\\\w+", found):
        raise PluginError(f"formula {latex!r}: {unknown[0]} is unknown to latex2mathml")
    return found
