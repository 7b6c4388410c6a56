"""Attacks by name: `NAME[:field=value,...]`, with the fields of the attack's dataclass.

The folder is the registry: a file of `robust/attacks` exports NAMED, from names to attacks at a threat, and NORM for
attacks that have only one norm. An attack of another package is named `package.module:name`.

>>> attack_named("pgd:steps=50,restarts=5", Threat("linf", 8 / 255)).steps
50
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from robust.attacks.pgd_presets import fgsm
from robust.ranges import shown
from robust.registry import joined
from robust.spec import configured, object_named, split_spec
from robust.threat import Threat

__all__ = ["ATTACKS", "NORM", "attack_at", "attack_named", "fgsm"]

ATTACKS: dict[str, Callable[[Threat], Any]] = joined("robust.attacks", "NAMED")
"""name -> attack at a threat"""

NORM: dict[str, str] = joined("robust.attacks", "NORM")
"""name -> norm, of attacks that have only one norm"""


def attack_named(spec: str, threat: Threat) -> Any:
    """Return the attack of a spec.

    Args:
        spec: "NAME" or "NAME:field=value,...", NAME a key of ATTACKS or `package.module:name`.
        threat: the ball; JSMA, which counts pixels, has none.

    Raises:
        ValueError: an unknown name or field, a value out of range, or a norm that the attack does not have.
    """
    name, options = split_spec(spec)
    return configured(attack_at(name)(threat), options, f"attack {name}", fixed=("threat",))


def attack_at(name: str) -> Callable[[Threat], Any]:
    """Return threat -> attack for a name, with the defaults of its fields.

    Raises:
        ValueError: an unknown name, or an object that is no attack: a frozen dataclass with a field `threat`, called as
            `attack(model, images, targets, generator=...)`.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    kind: Any = object_named(name, "attack")
    if kind is None:
        raise ValueError(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}, or write package.module:name")
    if not (isinstance(kind, type) and is_dataclass(kind) and "threat" in kind.__dataclass_fields__):
        raise ValueError(f"attack {shown(name)} is no attack: it must be a frozen dataclass with a field threat")
    return kind
