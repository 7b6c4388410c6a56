"""Methods with the labels of a teacher. Those of further methods of images are found by their names (`named`)."""

import re
from collections.abc import Callable

from baselines import coreset
from baselines.mtt import recipes as mtt
from baselines.robust_labels.method import TEACHERS, relabelled
from baselines.robust_labels.views import labelled_views
from distill.methods.method import Method

__all__ = ["METHODS", "named"]

NAME = re.compile(rf"(?P<base>.+)_(?P<kind>{'|'.join(TEACHERS)})_(?P<what>labels|views)")
BASES = {method.name: method for method in (*coreset.METHODS, *mtt.METHODS)}
"""methods of images by name"""


def named(name: str, method_of: Callable[[str], Method | None]) -> Method | None:
    """Return METHOD_robust_labels, METHOD_guard_views and the like; None for other names.

    Args:
        name: of the method.
        method_of: name -> a method of images; None for an unknown name.

    >>> [method and method.name for method in (named("mtt_guard_views", BASES.get), named("mtt_guard", BASES.get))]
    ['mtt_guard_views', None]
    """
    parts = NAME.fullmatch(name)
    base = method_of(parts["base"]) if parts else None
    if parts is None or base is None:
        return None
    return (relabelled if parts["what"] == "labels" else labelled_views)(base, parts["kind"])


METHODS = (
    relabelled(BASES["random"], "robust"),
    relabelled(BASES["random"], "plain"),
    relabelled(BASES["mtt"], "robust"),
    relabelled(BASES["mtt"], "guard"),
    labelled_views(BASES["random"], "robust"),
    labelled_views(BASES["mtt"], "robust"),
)
"""the methods that lists and tests have"""
