"""A Markdown extension: a flag in a sentence stays on one line, because browsers break lines after a hyphen."""

import re
from typing import Any

from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

__all__ = ["makeExtension", "unbroken"]

CODE = re.compile(r"(?<!<pre>)(?<!<pre><span></span>)<code>(.*?)</code>", re.DOTALL)
"""code in a sentence, not in a block"""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


class _Flags(Postprocessor):
    """Marks the flags of a page."""

    def run(self, text: str) -> str:
        """Return the HTML of a page with its flags marked."""
        return unbroken(text)


class _Extension(Extension):
    """Runs after all other extensions."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the replacement."""
        md.postprocessors.register(_Flags(md), "flags", 0)


def makeExtension(**how: Any) -> Extension:
    """Return the extension."""
    return _Extension(**how)


def unbroken(text: str) -> str:
    """Return HTML whose flags in inline code have the class `flag` (docs/tables.css).

    >>> unbroken("<p><code>--at 45</code></p>")
    '<p><code><span class="flag">--at</span> 45</code></p>'
    """
    return CODE.sub(lambda code: FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), text)
