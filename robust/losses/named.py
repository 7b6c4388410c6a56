"""Losses by name: `NAME[:field=value,...][@THREAT]`, with the fields of the loss's dataclass.

The folder is the registry: a file of `robust/losses` exports NAMED, from names to losses at a threat. The name of a
loss of another package is `package.module:name`.

>>> loss_named("trades:beta=3@2/255").beta
3.0
>>> written(loss_named("trades:beta=3@2/255"))
'trades:beta=3@2/255'
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from robust.losses.traits import Loss, Traits, Units, drawing_from
from robust.ranges import shown
from robust.registry import joined
from robust.spec import configured, differences, object_named, split_spec
from robust.threat import Threat, threat_named

__all__ = ["LOSSES", "METAVAR", "drawing_from", "loss_named", "written"]

METAVAR = "NAME:field=value@THREAT"
"""form of a loss's text in help texts"""

LOSSES: dict[str, Callable[[Threat], Any]] = joined("robust.losses", "NAMED")
"""name -> loss at a threat, for a model of pixels"""

_ON_INPUTS: Mapping[str, Callable[[Threat], Any]] = LOSSES | joined("robust.losses", "NAMED_ON_INPUTS")
"""the same for a network that takes normalised images: h of `cure` and `guard` is then the papers' 3"""


def loss_named(spec: str, family: str = "cifar10", units: Units = "pixels") -> Any:
    """Return the loss of a text.

    Args:
        spec: "NAME" or "NAME:field=value,...", followed by "@THREAT" for another ball than `linf_star`; NAME is a key
            of LOSSES, or `package.module:name`.
        family: family of the threat presets (see `threat_named`).
        units: units of the model's inputs, on which defaults depend: h of `cure` and `guard` is 0.75 for pixels, and 3
            for normalised images ("inputs").

    Raises:
        ValueError: a name, field or threat is unknown, or a value is out of range.
    """
    text, at, threat_text = spec.partition("@")
    name, options = split_spec(text)
    threat = threat_named(threat_text if at else "linf_star", family)
    return configured(_maker(name, units)(threat), options, f"loss {name}", fixed=("threat",))


def written(loss: Loss, units: Units = "pixels") -> str:
    """Return the shortest text from which `loss_named` with the same units makes an equal loss.

    Raises:
        ValueError: there is no such text.

    >>> from robust import CurvatureRegularizedLoss
    >>> loss = CurvatureRegularizedLoss(weight=10.0)
    >>> written(loss), written(loss, "inputs")
    ('guard:weight=10,h=3', 'guard:weight=10')
    """
    threat = _threat_of(loss)
    suffix = "" if threat is None else f"@{threat.written}"
    for names in (list(LOSSES), [f"{type(loss).__module__}:{type(loss).__qualname__}"]):
        texts = [text for name in names if (text := _options(loss, name, threat or _ANY, units)) is not None]
        if texts:
            return min(texts, key=lambda text: text.count("=")) + suffix
    raise ValueError(f"{shown(loss)} cannot be written as NAME:field=value")


_ANY = Threat("linf", 8 / 255)
"""arbitrary ball for a loss of which only the class or the defaults are needed"""


def _maker(name: str, units: Units) -> Callable[[Threat], Any]:
    """Return threat -> loss for a name.

    Raises:
        ValueError: the name is unknown, or the object is not a loss.
    """
    registry = _ON_INPUTS if units == "inputs" else LOSSES
    if name in registry:
        return registry[name]
    kind = object_named(name, "loss")
    if kind is None:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}, or write package.module:name")
    if not (inspect.isclass(kind) and is_dataclass(kind) and _declares_traits(kind)):
        line = "it must be a frozen dataclass that subclasses robust.Loss and declares its traits"
        raise ValueError(f"loss {shown(name)} is not a loss: {line}")
    made: Any = kind
    return lambda threat: made(threat=threat) if made.traits.threat else made()


def _declares_traits(kind: type) -> bool:
    return Loss in kind.__mro__ and any(isinstance(vars(each).get("traits"), Traits) for each in kind.__mro__)


def _options(loss: Loss, name: str, threat: Threat, units: Units) -> str | None:
    """Return the text of a loss, without threat, that starts with a name; None if the name means another class."""
    try:
        default = _maker(name, units)(threat)
    except ValueError:  # an unknown name, or a threat that the loss of this name does not accept
        return None
    options = differences(loss, default, fixed=("threat",)) if type(default) is type(loss) else None
    return None if options is None else f"{name}{options and ':'}{options}"


def _threat_of(loss: Loss) -> Threat | None:
    return next((getattr(loss, f.name) for f in fields(loss) if f.name == "threat"), None)  # pyright: ignore[reportArgumentType]
