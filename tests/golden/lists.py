"""Stores the list of methods of docs/methods/index.md anew: `python -m tests.golden.lists`."""

import re
from pathlib import Path

from distill.app.listing import as_markdown
from distill.app.registry import find_methods

__all__ = ["PAGES", "with_list"]

ROOT = Path(__file__).parents[2]
PAGES = {"docs/methods/index.md": ""}
"""page -> folder of the methods' pages, relative to it"""
TABLE = re.compile(r"^\| method \| what it does \| paper \|\n(?:\|.*\n)+", re.MULTILINE)


def with_list(text: str, pages: str) -> str:
    """Return a page whose list of methods is that of the methods found; the rest stays.

    >>> page = "before" + chr(10) + "| method | what it does | paper |" + chr(10) + "| old |" + chr(10) + "after"
    >>> new = with_list(page, "")
    >>> new.startswith("before"), new.endswith("after"), "| old |" in new, "`dc`" in new
    (True, True, False, True)
    """
    (table,) = TABLE.findall(text)
    return text.replace(table, as_markdown(find_methods(), pages))


if __name__ == "__main__":
    for page, pages in PAGES.items():
        path = ROOT / page
        path.write_text(with_list(path.read_text(encoding="utf-8"), pages), encoding="utf-8")
