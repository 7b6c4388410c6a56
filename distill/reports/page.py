"""A report as one HTML file: no script, nothing from elsewhere, so that it opens from a mail and prints.

A `Page` has sections, and a section has parts of a few kinds, which page.html lays out. Texts are escaped; only
`Markup` (the figures of `svg`) is taken as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Chart", "Code", "Facts", "Page", "Part", "Picture", "Pictures", "Section", "Table", "Text", "render"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """A command or a table of a terminal, as it is."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    facts: Mapping[str, str]
    title: str = ""
    """of a part that is folded until it is opened; "" for one that is always open"""
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    caption: str
    numbers: bool = True
    """whether all cells but the first are numbers, which are aligned"""
    title: str = ""
    """as of `Facts`"""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """An image of pixels."""

    address: str
    """data:image/..."""
    text: str
    """what it shows, for readers that do not see it"""
    label: str = ""
    """shown beside it"""
    images: int = 1
    """how many images stand side by side in it"""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures, each with its label, such as the images of each class."""

    rows: Sequence[Picture]
    caption: str
    wide: bool = False
    """whether a picture is as wide as the page, such as a figure of a file"""
    kind: str = "pictures"


@dataclass(frozen=True)
class Chart:
    """A figure of `svg`."""

    figure: Markup
    caption: str
    kind: str = "chart"


Part = Text | Code | Facts | Table | Pictures | Chart


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    summary: Sequence[str] = field(default_factory=tuple)
    """sentences below the title"""


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only needed where a page is written

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def render(page: Page) -> str:
    """Return the HTML of a page; sections without parts are left out.

    >>> html = render(Page("a < b", "", [Section("Results", [Text("all of it")]), Section("Nothing", [])]))
    >>> "a &lt; b" in html, "all of it" in html, "Nothing" in html, "<script" in html
    (True, True, False, False)
    """
    return _template().render(page=page, sections=[section for section in page.sections if section.parts])
