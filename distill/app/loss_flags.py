"""Flags that take a loss, `--real-loss guard:weight=3`: convert text to a loss of `robust.losses`, and back."""

import re
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from distill.errors import InputError, one_line
from robust import Loss, loss_named
from robust.losses.named import METAVAR, written

__all__ = ["refuse_fields_as_flags", "rules_of_losses"]

_FIELD_AS_FLAG = re.compile(r"(--(?:[a-z]+\.)?(?:[a-z]+[-_])?loss)\.([a-z_-]+)(?:=(.*))?", re.DOTALL)


def rules_of_losses(family: str) -> ConstructorRegistry:
    """Return rules by which tyro reads and shows fields of type `Loss`, for networks that take normalised images.

    Args:
        family: family of threat presets (`robust.threat.family_of`).
    """
    rules = ConstructorRegistry()

    @rules.primitive_rule
    def rule(field: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if field.type is not Loss:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=METAVAR,
            instance_from_str=lambda words: loss_named(words[0], family, "inputs"),
            is_instance=lambda value: isinstance(value, Loss),
            str_from_instance=lambda loss: [written(loss, "inputs")],
        )

    return rules


def refuse_fields_as_flags(flags: list[str]) -> None:
    """Refuse `--real-loss.weight 3`, the form of earlier versions.

    Raises:
        InputError: such a flag is there; the message has the present form.

    >>> refuse_fields_as_flags(["--real-loss.weight", "3", "--real-loss.h=2"])
    Traceback (most recent call last):
    distill.errors.InputError: --real-loss.weight is no longer a flag; write --real-loss guard:weight=3,h=2
    """
    found = [(match, index) for index, word in enumerate(flags) if (match := _FIELD_AS_FLAG.fullmatch(word))]
    if not found:
        return
    flag, options = found[0][0][1], []
    for match, index in found:
        next_word = flags[index + 1] if index + 1 < len(flags) and not flags[index + 1].startswith("--") else "VALUE"
        if match[1] == flag:
            options.append(f"{match[2].replace('-', '_')}={next_word if match[3] is None else match[3]}")
    example = one_line(f"{flag} guard:{','.join(options)}", 100)
    raise InputError(f"{flag}.{found[0][0][2]} is no longer a flag; write {example}")
