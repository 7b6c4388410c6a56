"""Classes are compared by name: a distilled set is evaluated on the classes that it was made of, in whatever order."""

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError

__all__ = ["check", "in_order_of"]


def check(distilled: DistilledSet, test: ImageSet) -> str:
    """Refuse a distilled set that is not one of this data set.

    Returns:
        what a reader of the results must know of the classes; "" where the names say which is which.

    Raises:
        InputError: shapes, or the names of the classes, differ.
    """
    if tuple(distilled.images.shape[1:]) != test.image_shape:
        ours, theirs = tuple(distilled.images.shape[1:]), test.image_shape
        raise InputError(f"the distilled images are {ours}, those of {test.name} {theirs}; give the same --image-size")
    if len(distilled.classes) != test.num_classes:
        raise InputError(
            f"the distilled set has {len(distilled.classes)} classes, {test.name} {test.num_classes}; give --dataset"
        )
    ours, theirs = distilled.classes, test.classes
    if ours == theirs or (sorted(ours) == sorted(theirs) and len({*ours}) == len(ours)):
        return ""
    if _numbers(ours) or _numbers(theirs):
        named, numbered = ("the distilled set", test.name) if _numbers(theirs) else (test.name, "the distilled set")
        return f"classes of {numbered} are numbers: number 0 is taken for the first class of {named}, and so on"
    odd = [", ".join(sorted(set(a) - set(b))[:5]) for a, b in ((ours, theirs), (theirs, ours))]
    raise InputError(
        f"the distilled set has the classes {odd[0] or 'of one name'}, {test.name} has {odd[1] or 'not'}; "
        "a set is evaluated on the classes that it was made of: give its --dataset or --data-dir"
    )


def _numbers(classes: tuple[str, ...]) -> bool:
    """Return whether the names are the numbers of the classes, 0 to K - 1, and say nothing."""
    return list(classes) == [str(number) for number in range(len(classes))]


def in_order_of(distilled: DistilledSet, real: ImageSet) -> ImageSet:
    """Return real images with their labels in the distilled set's order of the classes.

    Args:
        distilled: the set.
        real: images that passed `check`.
    """
    other_order = real.classes != distilled.classes and sorted(real.classes) == sorted(distilled.classes)
    return real.ordered_as(distilled.classes) if other_order else real
