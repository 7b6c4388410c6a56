"""`bash run.sh list`: every name that a flag accepts; and the list of methods in the docs."""

from collections.abc import Mapping

from distill.app.flags import HELP
from distill.data import DATASETS
from distill.errors import InputError
from distill.evaluation.columns import PRESETS, SPECIAL
from distill.methods.method import Method
from distill.models import BACKBONES
from distill.published.formats import SOURCES
from distill.published.writers import EXPORTS
from distill.training.augment import STRATEGIES
from robust import ATTACKS, LOSSES, THREATS

__all__ = ["as_markdown", "run_list", "usage_of"]

ANY = "and for every METHOD of images: METHOD_robust_labels, _guard_labels, _plain_labels, _robust_views, ..."
"""names of methods that the list does not repeat for each method"""


def run_list(flags: list[str], methods: Mapping[str, Method]) -> int:
    """Print every name that a flag accepts.

    Args:
        flags: the command-line words after `list`.
        methods: all methods, by name.

    Returns:
        the exit code.

    Raises:
        InputError: there are words after `list`.
    """
    if flags and flags[0] not in HELP:
        raise InputError(f"list takes no arguments, but got {' '.join(flags)}")
    lines = {
        "recipes": _recipes(methods),
        "data sets": ", ".join(DATASETS),
        "backbones": f"{', '.join(BACKBONES)}, any timm model; options after a colon: convnet:width=64,norm=batch",
        "losses": "of real images (--real-loss), experts (--expert-loss), teachers (--squeeze.loss) and students "
        f"(--student.loss): {', '.join(LOSSES)}; fields after a colon, a threat after @: trades:beta=3@2/255; "
        "or package.module:name",
        "augmentations": f"a DSA strategy of {', '.join(STRATEGIES)} joined by _, one of DC's as in "
        "dc:crop_scale_rotate, or kornia:Name(...)+Name(...)",
        "attacks": "linf_star, linf, l2 (the paper's: PGD of 10 steps), "
        f"{', '.join((*ATTACKS, *SPECIAL, *PRESETS))}; "
        "fields after a colon, a threat after @: pgd:steps=50,restarts=5@8/255",
        "published": f"formats of published sets that evaluate reads (--source): {', '.join(SOURCES)}",
        "exports": f"{', '.join(EXPORTS)}: formats that export writes",
        "threats": "pixels in [0, 1]; a name, or a size: 8/255, l2:0.5",
    }
    width = max(map(len, methods)) + 2
    for number, (name, method) in enumerate(methods.items()):
        print(f"{'' if number else 'methods':14s}{name:{width}s}{method.summary}")
    print(f"{'':14s}{ANY}")
    for kind, names in lines.items():
        print(f"{kind:14s}{names}")
    for group, threats in THREATS.items():
        sizes = ", ".join(f"{name} {threat.norm} {threat.eps:.4g}" for name, threat in threats.items())
        print(f"{'':14s}  {group:9s}{sizes}")
    return 0


def usage_of(method: Method) -> str:
    """Return the text that `bash run.sh METHOD` prints without a data set."""
    return (
        f"{method.name}: {method.summary}\n({method.paper}; docs/methods/{method.page}.md)\n\n"
        f"usage: bash run.sh {method.name} DATASET [--flags]; DATASET is one of {', '.join(DATASETS)}\n"
    )


def as_markdown(methods: Mapping[str, Method], pages: str) -> str:
    """Return the table of methods of the docs' index.

    Args:
        methods: all methods, by name.
        pages: folder of the methods' pages, relative to the page with the table; "" or ending with a slash.

    Returns:
        a row for each method: name with a link to the method's page, summary, paper.
    """
    rows = (f"| [`{m.name}`]({pages}{m.page}.md) | {m.summary} | {m.paper} |" for m in methods.values())
    return "\n".join(("| method | what it does | paper |", "|---|---|---|", *rows, ""))


def _recipes(methods: Mapping[str, Method]) -> str:
    """Return the names of all recipes; a recipe that not every method has is followed by the methods that have it."""
    owners: dict[str, list[str]] = {}
    for method in methods.values():
        for name in method.recipes:
            owners.setdefault(name, []).append(method.name)
    return ", ".join(
        name if len(names) == len(methods) else f"{name} ({', '.join(names)})" for name, names in owners.items()
    )
