"""The columns of a table of robustness: what `--attacks NAME[:field=value,...][@THREAT],...` asks for.

    linf_star, linf, l2          the paper's: ten steps of PGD at its three threats, with its step sizes
    a name of robust.ATTACKS     at the threat behind the @, else at --threat, else once for each of --eps
    transfer                     PGD on a network of the same kind trained on the real data
    transfer_student             PGD on a student of another architecture (--transfer-backbone)
    worst                        who withstands every attack above at that threat or a smaller one
    corruptions                  fifteen kinds of damage at five severities each, the mean
    certified                    randomised smoothing: certified right within the threat (sigma, n0, n, alpha)

A threat is a preset (linf_star, linf, l2, aaai25, standard, standard_l2) or an eps: 8/255, l2:0.5. The name of a column
has its threat in it (pgd@8/255), so that results of two threats never meet under one name. JSMA, whose ball is in no
norm of these, has the share of an image's values that it may change, by any amount: jsma@l0:0.1 (its gamma).
"""

import re
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, Literal

import torch

from distill.errors import InputError, unknown
from distill.experiment import Evaluation
from robust import ATTACKS, JSMA, PGD, AutoAttack, Square, Threat, attack_named, paper_attacks, threat_named
from robust.attacks.named import NORM
from robust.ranges import Count, Inside01, Positive, check_ranges, shown
from robust.spec import configured, number_in, split_spec
from robust.threat import family_of

__all__ = ["SPECIAL", "Certification", "Column", "columns"]

Kind = Literal["white", "single_step", "black", "noise", "ensemble", "corruptions", "certified"]
KINDS: dict[str, Kind] = {
    "fgsm": "single_step",
    "square": "black",
    "transfer": "black",
    "transfer_student": "black",
    "noise": "noise",
    "autoattack": "ensemble",
    "worst": "ensemble",
    "corruptions": "corruptions",
    "certified": "certified",
}
SPECIAL = ("transfer", "transfer_student", "worst", "corruptions", "certified")


@dataclass(frozen=True)
class Certification:
    """How `certified` smooths: see `robust.certify`."""

    sigma: Positive = 0.25
    """of the noise, in pixels of [0, 1]; the students' own (--student.loss noise:sigma=...)"""
    n0: Count = 100
    """draws that choose the class"""
    n: Count = 1000
    """draws that bound its probability"""
    alpha: Inside01 = 0.001
    """probability that a certificate is wrong"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def largest(self) -> float:
        """The radius where all draws agree: none is larger."""
        return self.sigma * NormalDist().inv_cdf(max(0.5, self.alpha ** (1 / self.n)))


@dataclass(frozen=True)
class Column:
    """One column beside `clean`."""

    name: str
    """as tables show it: the attack with its fields, @ and the threat; the paper's three have no @"""
    base: str
    """the name without its threat: columns of one base are one attack at several strengths"""
    kind: Kind
    """what it can show, for `robust.checks`"""
    attack: Any
    """the attack; for a transfer the one on the surrogate, for `certified` a Certification, else None"""
    threat: Threat | None
    """the ball; None for corruptions, and for attacks that count something else"""
    how: str
    """the attack's settings, as far as they are not its defaults: two columns of one name and another `how` differ"""

    @property
    def ball(self) -> str:
        """The ball with its norm, "linf:8/255", also JSMA's, "l0:0.1"; "" where nothing is attacked."""
        if isinstance(self.attack, JSMA):
            return f"l0:{_short(self.attack.gamma)}"
        return self.threat.named if self.threat else ""


def columns(evaluation: Evaluation, channels: int, size: int) -> list[Column]:
    """Return the columns in the order in which they are asked for.

    Raises:
        InputError: an unknown name, field or threat, a threat that the attack does not have, or a column twice.
    """
    group = family_of(channels, size)
    default = _threat("--threat", evaluation.threat, group)
    curve = [_threat("--eps", f"{default.norm}:{eps}", group) for eps in evaluation.eps.split(",") if eps]
    try:
        sources = {
            "transfer": f"{evaluation.surrogate_epochs} epochs",
            "transfer_student": evaluation.transfer_backbone,
        }
        found: list[Column] = []
        for item in re.split(r",(?!\w+=)", evaluation.attacks):
            if item:
                found += _columns(item, group, default, curve, sources)
        for column in found:
            members = column.attack.members() if isinstance(column.attack, AutoAttack) else (column.attack,)
            for member in members:
                if isinstance(member, Square):
                    member.check_shape(torch.empty(1, channels, size, size))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--attacks: {error}") from None
    names = [column.name for column in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--attacks has {twice} twice; give it once")
    return found


def _threat(flag: str, text: str, group: str) -> Threat:
    try:
        return threat_named(text, group)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None


def _columns(item: str, group: str, default: Threat, curve: list[Threat], sources: dict[str, str]) -> list[Column]:
    paper = paper_attacks("mnist" if group == "mnist" else "cifar10")
    if item in paper:
        return [Column(item, "pgd, the paper's", "white", paper[item], paper[item].threat, _settings(paper[item]))]
    spec, at, place = item.partition("@")
    name, options = split_spec(spec)
    if name == "corruptions" and not (options or at):
        return [Column(item, item, "corruptions", None, None, "")]
    if name not in ATTACKS and name not in SPECIAL:
        raise unknown("attack", name, [*paper, *ATTACKS, *SPECIAL])
    if name == "jsma":
        return [_of_jsma(spec, options, place)]
    norm = "l2" if name == "certified" else NORM.get(name)
    if at:
        threats = [threat_named(place, group)]
    elif norm not in (None, default.norm):
        threats = [threat_named(norm, group)]
    else:
        threats = curve or [default]
    return [_column(spec, name, options, threat, sources.get(name, "")) for threat in threats]


def _column(spec: str, name: str, options: dict[str, str], threat: Threat, source: str) -> Column:
    kind, label = KINDS.get(name, "white"), f"{spec}@{threat.written}"
    if name == "certified":
        if threat.norm != "l2":
            raise ValueError(f"{label}: smoothing certifies l2 balls; write a threat such as l2:0.5")
        how = configured(Certification(), options, "certified")
        if threat.eps > how.largest:
            raise ValueError(
                f"{label}: {how.n} draws at sigma {how.sigma:g} certify {how.largest:.3g} at most, less than "
                f"the threat's {threat.eps:g}; take a larger sigma or n, or a smaller threat"
            )
        return Column(label, spec, kind, how, threat, _settings(how))
    if name in ("transfer", "transfer_student"):
        walk = PGD(threat, steps=20, step_size=threat.eps / 4 or None, iterate="last")
        walk = configured(walk, options, name, fixed=("threat", "iterate"))
        return Column(label, spec, kind, walk, threat, f"{_settings(walk)} from {source}")
    if name in ("worst", "corruptions"):
        if options or name == "corruptions":
            raise ValueError(f"{label}: {name} has no options")
        return Column(label, spec, kind, None, threat, "")
    attack = attack_named(spec, threat)
    return Column(label, spec, kind, attack, threat, _settings(attack))


def _of_jsma(spec: str, options: dict[str, str], place: str) -> Column:
    """Return the column of JSMA, whose size is its own: the same number as `gamma` and behind the @."""
    norm, _, size = place.rpartition(":")
    if place and norm != "l0":
        raise ValueError(
            f"threat of jsma is {shown(place)}; JSMA changes few values by any amount, so it has none in linf or l2; "
            "write the share of values, such as jsma@l0:0.1"
        )
    if place and "gamma" not in options and number_in(size) != JSMA().gamma:
        spec += f"{',' if options else ':'}gamma={size}"
    attack = attack_named(spec, Threat("l2", 0.0))  # which it does not look at
    if place and number_in(size) != attack.gamma:
        raise ValueError(f"{spec}@{place}: gamma is {attack.gamma:g}, the share behind the @ another; give one of them")
    return Column(f"{spec}@l0:{_short(attack.gamma)}", spec, "white", attack, None, _settings(attack))


def _short(share: float) -> str:
    return f"{share:g}" if float(f"{share:g}") == share else repr(share)


def _settings(attack: Any) -> str:
    """Return an attack's fields beside its threat that are not at their defaults.

    >>> _settings(PGD(Threat("linf", 0.1), steps=50))
    'PGD(steps=50)'
    """
    changed = (f for f in fields(attack) if f.name != "threat" and getattr(attack, f.name) != f.default)
    return f"{type(attack).__name__}({', '.join(f'{f.name}={getattr(attack, f.name)}' for f in changed)})"
