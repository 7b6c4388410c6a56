"""The columns of a table of robustness, read from `--attacks NAME[:field=value,...][@THREAT],...`.

    linf_star, linf, l2          the paper's: ten steps of PGD at its three threats, with its step sizes
    a name of robust.ATTACKS     at the threat behind the @, else at --threat, else once for each of --eps
    package.module:name          an attack of another package, in the same way
    transfer                     PGD on a network of the same kind trained on the real data
    transfer_student             PGD on a student of another architecture (--transfer-backbone)
    worst                        the images right under every attack above at that threat or a smaller one
    corruptions                  fifteen kinds of damage at five severities each, the mean
    certified                    randomised smoothing: images certified right within the threat (sigma, n0, n, alpha)
    ddrb                         six columns, those of DD-RobustBench at 2/255 or behind an @ (distill.evaluation.ddrb)

A threat is a preset (linf_star, linf, l2, aaai25, standard, standard_l2) or an eps: 8/255, l2:0.5. The name of a column
has the threat in it (pgd@8/255), so that results of two threats never have one name. JSMA has a ball in neither norm:
behind its @ is the share of an image's values that may change by any amount, jsma@l0:0.1 (the field gamma).
"""

import re
from dataclasses import fields
from typing import Any

import torch

from distill.errors import InputError, unknown
from distill.evaluation.column_kinds import (
    AttackColumn,
    AttackKind,
    Certification,
    CertifiedColumn,
    Column,
    CorruptionsColumn,
    MinimumNormColumn,
    TransferColumn,
    WorstColumn,
)
from distill.evaluation.ddrb import ddrb
from distill.evaluation.rows import ShareOfValues
from distill.experiment import Evaluation
from robust import PGD, AutoAttack, Square, Threat, attack_named, paper_attacks, threat_named
from robust.attacks.named import ATTACKS, NORM
from robust.ranges import shown
from robust.spec import configured, number_in, split_spec
from robust.threat import family_of

__all__ = ["PRESETS", "SPECIAL", "columns"]

KINDS: dict[str, AttackKind] = {
    "fgsm": "single_step",
    "square": "black",
    "noise": "noise",
    "autoattack": "ensemble",
}
"""kinds of attacks that are not "white" """
SPECIAL = ("transfer", "transfer_student", "worst", "corruptions", "certified")
"""names of columns that are no attacks of `robust`"""
PRESETS = ("ddrb",)
"""names of several columns"""


def columns(evaluation: Evaluation, channels: int, size: int) -> list[Column]:
    """Return the columns in the order of `--attacks`.

    Args:
        evaluation: gives attacks, threats and surrogates.
        channels: of the test images.
        size: their height and width in pixels.

    Raises:
        InputError: an unknown name, field or threat, a threat that the attack does not have, a column twice, or `worst`
            without an attack to join.
    """
    group = family_of(channels, size)
    default = _threat("--threat", evaluation.threat, group)
    curve = [_threat("--eps", f"{default.norm}:{eps}", group) for eps in evaluation.eps.split(",") if eps]
    sources = {"transfer": f"{evaluation.surrogate_epochs} epochs", "transfer_student": evaluation.transfer_backbone}
    try:
        found: list[Column] = []
        for item in re.split(r",(?!\w+=)", evaluation.attacks):
            if item:
                found += _columns(item, group, default, curve, sources)
        for column in found:
            if isinstance(column, AttackColumn):
                _check_shape(column, torch.empty(1, channels, size, size))
            if isinstance(column, WorstColumn) and not column.members(found):
                raise ValueError(f"{column.name} joins the attacks in this ball, and there is none; name one too")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--attacks: {error}") from None
    names = [column.name for column in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--attacks has {twice} twice; give it once")
    return found


def _check_shape(column: AttackColumn, images: torch.Tensor) -> None:
    """Refuse images of a size that Square does not take.

    Raises:
        ValueError: the attack, or a part of it, is Square, and does not take this size.
    """
    members = column.attack.members() if isinstance(column.attack, AutoAttack) else (column.attack,)
    for member in members:
        if isinstance(member, Square):
            member.check_shape(images)


def _threat(flag: str, text: str, group: str) -> Threat:
    try:
        return threat_named(text, group)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None


def _columns(item: str, group: str, default: Threat, curve: list[Threat], sources: dict[str, str]) -> list[Column]:
    """Return the columns of one item of `--attacks`.

    Args:
        item: NAME[:field=value,...][@THREAT].
        group: family of threats.
        default: threat of attacks without one.
        curve: threats of `--eps`, which take the place of the default.
        sources: by name of a transfer, where its surrogate comes from.

    Raises:
        ValueError: as of `columns`.
    """
    paper = paper_attacks("mnist" if group == "mnist" else "cifar10")
    if item in paper:
        attack = paper[item]
        options = {"kind": "white", "threat": attack.threat, "how": _settings(attack), "attack": attack}
        return [AttackColumn(name=item, base="pgd, the paper's", **options)]
    spec, at, threat = item.partition("@")
    name, options = split_spec(spec)
    if name in PRESETS:
        if options:
            raise ValueError(f"{item}: {name} has no options; write its columns one by one to change them")
        items = ddrb(threat_named(threat if at else "2/255", group))
        return [column for each in items for column in _columns(each, group, default, curve, sources)]
    if name == "corruptions" and not (options or at):
        return [CorruptionsColumn(name=item, base=item)]
    of_a_package = "." in name.partition(":")[0]  # package.module:name, which `attack_named` imports
    if name not in ATTACKS and name not in SPECIAL and not of_a_package:
        raise unknown("attack", name, [*paper, *ATTACKS, *SPECIAL, *PRESETS])
    if name == "jsma":
        return [_jsma(spec, options, threat)]
    norm = "l2" if name == "certified" else NORM.get(name)
    if at:
        threats = [threat_named(threat, group)]
    elif norm not in (None, default.norm):
        threats = [threat_named(norm, group)]
    else:
        threats = curve or [default]
    return [_column(spec, name, options, threat, sources.get(name, "")) for threat in threats]


def _column(spec: str, name: str, options: dict[str, str], threat: Threat, source: str) -> Column:
    shared: dict[str, Any] = {"name": f"{spec}@{threat.written}", "base": spec, "threat": threat}
    if name == "certified":
        return _certified(options, shared)
    if name in ("transfer", "transfer_student"):
        walk = PGD(threat, steps=20, step_size=threat.eps / 4 or None, iterate="last")
        walk = configured(walk, options, name, fixed=("threat", "iterate"))
        how = f"{_settings(walk)} from {source}"
        return TransferColumn(**shared, kind="black", how=how, attack=walk, surrogate=name)
    if name in ("worst", "corruptions"):
        if options or name == "corruptions":
            raise ValueError(f"{shared['name']}: {name} has no options")
        return WorstColumn(**shared)
    attack = attack_named(spec, threat)
    kind = MinimumNormColumn if getattr(attack, "minimum_norm", False) else AttackColumn
    return kind(**shared, kind=KINDS.get(name, "white"), how=_settings(attack), attack=attack)


def _certified(options: dict[str, str], shared: dict[str, Any]) -> CertifiedColumn:
    name, threat = shared["name"], shared["threat"]
    if threat.norm != "l2":
        raise ValueError(f"{name}: smoothing certifies l2 balls; write a threat such as l2:0.5")
    how = configured(Certification(), options, "certified")
    if threat.eps > how.largest:
        raise ValueError(
            f"{name}: {how.n} draws at sigma {how.sigma:g} certify {how.largest:.3g} at most, less than "
            f"the threat's {threat.eps:g}; take a larger sigma or n, or a smaller threat"
        )
    return CertifiedColumn(**shared, how=_settings(how), certification=how)


def _jsma(spec: str, options: dict[str, str], share: str) -> MinimumNormColumn:
    """Return the column of JSMA: the share behind the @ and the field `gamma` are one number."""
    norm, _, size = share.rpartition(":")
    if share and norm != "l0":
        raise ValueError(
            f"threat of jsma is {shown(share)}; JSMA changes few values by any amount, so it has none in linf or l2; "
            "write the share of values, such as jsma@l0:0.1"
        )
    default = attack_named("jsma", Threat("l2", 0.0)).gamma  # JSMA does not use the threat
    if share and "gamma" not in options and number_in(size) != default:
        spec += f"{',' if options else ':'}gamma={size}"
    attack = attack_named(spec, Threat("l2", 0.0))
    if share and number_in(size) != attack.gamma:
        raise ValueError(f"{spec}@{share}: gamma is {attack.gamma:g}, the share behind the @ another; give one of them")
    name = f"{spec}@{ShareOfValues(attack.gamma).named}"
    return MinimumNormColumn(name=name, base=spec, kind="white", how=_settings(attack), attack=attack)


def _settings(attack: Any) -> str:
    """Return an attack's fields beside its threat that are not at their defaults.

    >>> _settings(PGD(Threat("linf", 0.1), steps=50))
    'PGD(steps=50)'
    """
    changed = (f for f in fields(attack) if f.name != "threat" and getattr(attack, f.name) != f.default)
    return f"{type(attack).__name__}({', '.join(f'{f.name}={getattr(attack, f.name)}' for f in changed)})"
