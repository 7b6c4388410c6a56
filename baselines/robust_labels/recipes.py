"""Methods with the labels of a teacher. Those of further methods of images are found by their names (`named`)."""

import re
from collections.abc import Mapping

from baselines import coreset
from baselines.mtt import recipes as mtt
from baselines.robust_labels.method import TEACHERS, relabelled
from baselines.robust_labels.views import labelled_views
from distill.methods.method import Method

__all__ = ["METHODS", "named"]

NAME = re.compile(rf"(?P<base>.+)_(?P<kind>{'|'.join(TEACHERS)})_(?P<what>labels|views)")
BASES = {method.name: method for method in (*coreset.METHODS, *mtt.METHODS)}
"""methods of images by name"""


def named(name: str, methods: Mapping[str, Method]) -> Method | None:
    """Return METHOD_robust_labels, METHOD_guard_views and the like; None for other names.

    Args:
        name: of the method.
        methods: methods of images by name.

    >>> [method and method.name for method in (named("mtt_guard_views", BASES), named("mtt_guard", BASES))]
    ['mtt_guard_views', None]
    """
    parts = NAME.fullmatch(name)
    if parts is None or parts["base"] not in methods:
        return None
    make = relabelled if parts["what"] == "labels" else labelled_views
    return make(methods[parts["base"]], parts["kind"])


METHODS = (
    relabelled(BASES["random"], "robust"),
    relabelled(BASES["random"], "plain"),
    relabelled(BASES["mtt"], "robust"),
    relabelled(BASES["mtt"], "guard"),
    labelled_views(BASES["random"], "robust"),
    labelled_views(BASES["mtt"], "robust"),
)
"""the methods that lists and tests have"""
