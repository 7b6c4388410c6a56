"""An extension for mkdocstrings: converts doctests and lists in plain docstrings to Markdown."""

from typing import Any

from griffe import Extension, Object

__all__ = ["Doctests", "as_markdown"]


class Doctests(Extension):
    """Converts every docstring to Markdown for the site."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring before it is read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring whose doctests are fenced, and whose lists begin after an empty line.

    >>> print(as_markdown("Sum: - a"))
    Sum: - a
    """
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(">>> ") and not inside:
            out += ["", "```pycon"]
            inside = True
        elif inside and not line.strip():
            out.append("```")
            inside = False
        elif not inside and line.startswith("  - ") and out and out[-1].strip() and not out[-1].startswith("  "):
            out.append("")
        out.append(line)
    return "\n".join([*out, "```"] if inside else out)
