"""A hook of mkdocs: converts formulas to MathML when the site is built; browsers show MathML without a script.

Markdown has formulas as `$...$` within a line and as `$$` blocks. pymdownx.arithmatex finds them and leaves their LaTeX
in elements of the class `arithmatex`; this hook converts each into a `<math>` element.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

__all__ = ["as_mathml", "on_page_content"]

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
"""the output of arithmatex with `generic: true`"""


def on_page_content(html_of_page: str, **_: Any) -> str:
    """Return the HTML of a page with its formulas as MathML; mkdocs calls this for every page."""
    return FORMULA.sub(lambda found: as_mathml(html.unescape(found[3]), block=found[2] == "["), html_of_page)


def as_mathml(latex: str, *, block: bool) -> str:
    r"""Return a formula as a `<math>` element.

    Args:
        latex: the formula, without the dollar signs.
        block: whether it is a block instead of inline.

    Raises:
        PluginError: the formula has a command or a brace that the converter does not know; the build then fails.

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
