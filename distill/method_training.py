"""What the protocol of a method needs to know of a distilled set in order to train students on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from robust.ranges import Count, NonNegative, Positive, Range, Whole, check_ranges, shown

__all__ = ["COMPANIONS", "MethodTraining"]

COMPANIONS = ("whitening", "labels", "teacher")
"""fields that name a file, or a folder of labels, which belongs to the set"""
TEXTS = ("augment", "whitening", "weights", "labels", "teacher", "teacher_backbone")
LISTS = ("order", "lrs", "fixed")
MAPPINGS = ("validate", "compute", "extra")


@dataclass(frozen=True)
class MethodTraining:
    """Settings that a method's own protocol reads from a distilled set; None where the set does not have one.

    The file of a set has them as one JSON object, without those that are None. Tensors that a protocol needs are in
    `DistilledSet.training_tensors`.

    Raises:
        ValueError: a field is of another type, or a number out of its range.
    """

    lr: Positive | None = None
    """learning rate of students (mtt: learned; dim; frepo)"""
    epochs: Count | None = None
    """passes over the images (dim, mtt)"""
    steps: Whole | None = None
    """training steps (frepo, kip); frepo: None for a number that depends on the number of images"""
    augment: str | None = None
    """groups of the augmentation of students, joined by "_" (dim, frepo)"""
    whitening: str | None = None
    """path of the file of a `distill.training.whiten.Whiten`, relative to the folder of the set (mtt, frepo, kip)"""
    order: list[list[Whole]] | None = None
    """indices of the images of each distilled step (dd)"""
    lrs: list[NonNegative] | None = None
    """learning rate of each distilled step (dd)"""
    weights: str | None = None
    """distribution of the students' initial weights (dd)"""
    fixed: list[Annotated[int, Range(least=0, most=2**64)]] | None = None
    """seeds of the known networks that the set was made for, empty where it was made for random ones (dd)"""
    w_std: NonNegative | None = None
    """standard deviation of the students' initial weights, times the root of their fan-in (kip)"""
    b_std: NonNegative | None = None
    """standard deviation of the students' initial biases (kip)"""
    width: Count | None = None
    """channels of the generator (dim)"""
    dim_noise: Count | None = None
    """length of the generator's input (dim)"""
    labels: str | None = None
    """path of the folder of stored labels of crops, relative to the folder of the set (sre2l)"""
    teacher: str | None = None
    """path of the teacher's weights, relative to the folder of the set (sre2l, METHOD_robust_views)"""
    teacher_backbone: str | None = None
    """network of the teacher (sre2l, METHOD_robust_views)"""
    validate: dict[str, Any] | None = None
    """fields of `sre2l.validate.Validate` (sre2l)"""
    compute: dict[str, Any] | None = None
    """fields of `sre2l.precision.Compute` (sre2l)"""
    factor: Count | None = None
    """images along a side of a stored image, where several images of the set share the storage of one (coresets)"""
    extra: dict[str, Any] = field(default_factory=dict)
    """fields of methods outside this tree, of JSON's types"""

    @property
    def alone(self) -> "MethodTraining":
        """The same without its companions, for a file that is read without them."""
        return replace(self, **dict.fromkeys((*COMPANIONS, "teacher_backbone")))

    def __post_init__(self) -> None:
        check_ranges(self)
        for names, kind, description in (
            (TEXTS, str, "a text"),
            (LISTS, (list, tuple), "a list"),
            (MAPPINGS, dict, "a dict"),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) and not (value is None and name != "extra"):
                    raise ValueError(f"{name} of the set's training is {shown(value)}; it must be {description}")
        if taken := sorted(self.extra.keys() & {each.name for each in fields(self)}):
            raise ValueError(f"extra has {', '.join(taken)}, which are fields already")

    def missing(self, *names: str) -> list[str]:
        """Return which of some fields the set does not have, sorted.

        >>> MethodTraining(lr=0.1).missing("lr", "steps")
        ['steps']
        """
        return sorted(name for name in names if getattr(self, name) is None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that the set has, of JSON's types.

        >>> MethodTraining(lr=0.1, extra={"rounds": 2}).to_json()
        {'lr': 0.1, 'rounds': 2}
        """
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        return {name: value for name, value in values.items() if value is not None} | self.extra

    @classmethod
    def from_json(cls, content: object) -> "MethodTraining":
        """Return the settings that `to_json` gave; names that are no fields become `extra`.

        Raises:
            ValueError: the content is no JSON object, or as the class.

        >>> MethodTraining.from_json({"lr": 0.1, "rounds": 2}).extra
        {'rounds': 2}
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"training is a {type(content).__name__}; it must be a dict")
        known = {each.name for each in fields(cls)} - {"extra"}
        own = {str(name): value for name, value in content.items() if name in known}
        return cls(**own, extra={str(name): value for name, value in content.items() if name not in known})
