"""Methods with the labels of a teacher. Those of further methods are found by their names: METHOD_robust_labels."""

from baselines import coreset
from baselines.mtt import recipes as mtt
from baselines.robust_labels.method import TEACHERS, relabelled

__all__ = ["METHODS"]

BASES = {method.name: method for method in (*coreset.METHODS, *mtt.METHODS)}
"""methods of images by name"""

METHODS = tuple(relabelled(BASES[name], kind) for name in ("random", "mtt") for kind in TEACHERS)
