"""The curves of `frontier`: each method at several strengths, and the controls that a gain must survive.

A text of flags with values in braces stands for one text for each value, as a shell expands it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from distill.errors import InputError
from distill.methods.method import Method

__all__ = ["CONTROLS", "EPOCHS", "Control", "Curve", "PlannedPoint", "controls_of", "curve_of", "expanded"]

EPOCHS = "--student.epochs {100,300,1000}"
"""strengths of a method without a flag of its own: shorter training trades accuracy whatever the method"""
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Control:
    """An ordinary change that could explain a gain, to be seen beside the methods."""

    name: str
    """in tables and in the figure; "" for a method whose name says it"""
    method: str
    """"" for the method of --controls"""
    flags: str = ""
    """of the method, values in braces"""
    times_ipc: int = 1
    """images per class, as a multiple of those of the table"""


CONTROLS = (
    Control("short training", "", "--student.epochs {100,300}"),
    Control("weight decay x 10", "", "--student.weight-decay 5e-3"),
    Control("label smoothing", "", "--student.loss cross_entropy:smoothing=0.1"),
    Control("blurred", "", "--blur 0.75"),
    Control("blurred", "random", "--blur 0.75"),
    Control("factor 2", "random", "--factor 2"),
    Control("4 x images", "random", times_ipc=4),
    Control("", "random_plain_labels"),
    Control("", "random_robust_labels"),
    Control("", "random_plain_views"),
    Control("", "rded"),
)
"""in the order of the figure. Factor 2 and 4 x images train on as many images; the first stores a quarter of the
pixels. Labels: random images with labels of a teacher"""


@dataclass(frozen=True)
class PlannedPoint:
    """A method at one strength."""

    setting: str
    """short text of the strength, for tables"""
    flags: str
    """text of the method's flags"""


@dataclass(frozen=True)
class Curve:
    """A method or a control, at its strengths."""

    name: str
    """in tables: the method, or "method, control" """
    method: str
    points: tuple[PlannedPoint, ...]
    control: bool = False
    times_ipc: int = 1
    """images per class, as a multiple of those of the table"""


def expanded(text: str) -> list[PlannedPoint]:
    """Return a point for each value of a text with braces; several braces give all combinations, the last fastest.

    Args:
        text: flags, with values in braces.

    Raises:
        InputError: a brace is not closed or contains another.

    >>> [point.setting for point in expanded("--real-loss guard:weight={1,10},h=3 --student.epochs {100,300}")]
    ['weight=1, epochs 100', 'weight=1, epochs 300', 'weight=10, epochs 100', 'weight=10, epochs 300']
    >>> expanded("--teacher pgd_at:steps=3@{2/255,4/255}")[0].flags, expanded("--zca")[0].setting
    ('--teacher pgd_at:steps=3@2/255', 'zca')
    """
    parts = BRACES.split(text)  # text, values, text, values, ..., text
    if any(character in part for part in parts[::2] for character in "{}"):
        raise InputError(f"{text!r} has a brace without its partner, or one within another: write weight={{1,3}},h=3")
    if len(parts) == 1:
        words = re.sub(r"--(student\.)?", "", text).split()
        return [PlannedPoint(" ".join(words) or "recipe", text.strip())]
    names = [re.split(r"[\s,:]|--|student\.", part.rstrip())[-1] + " " * part.endswith(" ") for part in parts[:-1:2]]
    found = []
    for values in product(*(part.split(",") for part in parts[1::2])):
        setting = ", ".join(name + value for name, value in zip(names, values, strict=True))
        flags = "".join(part + value for part, value in zip(parts[::2], [*values, ""], strict=True))
        found.append(PlannedPoint(setting, flags.strip()))
    return found


def curve_of(method: Method, text: str | None) -> Curve:
    """Return the curve of a method.

    Args:
        method: with the flags that set its strength.
        text: flags instead of the method's own, values in braces; "" for the recipe's setting alone; None for the
            method's own.

    Raises:
        InputError: the text has a brace without its partner.
    """
    own = method.strength or ("" if method.whole_class else EPOCHS)
    return Curve(method.name, method.name, tuple(dict.fromkeys(expanded(own if text is None else text))))


def controls_of(
    controlled: str, curves: Sequence[Curve], methods: Mapping[str, Method], table: Sequence[Control] = CONTROLS
) -> list[Curve]:
    """Return the controls as curves; a control that has no point beside those of the curves is left out.

    Args:
        controlled: the method of --controls; "" for no controls.
        curves: of the methods.
        methods: all methods, by name.
        table: the controls.

    Raises:
        InputError: a method is unknown.
    """
    if not controlled:
        return []
    there = {(curve.method, point.flags) for curve in curves for point in curve.points}
    found = []
    for control in table:
        method = control.method or controlled
        alone = control.flags == "" and control.times_ipc == 1  # the method's name says what the control is
        if method not in methods:
            raise InputError(f"a control takes the method {method}, which is unknown; see --controls")
        if alone and any(curve.method == method for curve in curves):
            continue
        points = expanded(control.flags)
        if control.times_ipc == 1 and all((method, point.flags) in there for point in points):
            continue
        name = method if alone else f"{method}, {control.name}"
        found.append(Curve(name, method, tuple(points), True, control.times_ipc))
    return found
