"""Classes are compared by name: the test set must have the classes of the distilled set, in any order."""

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError

__all__ = ["check", "in_order_of"]


def check(distilled: DistilledSet, test: ImageSet) -> str:
    """Refuse a distilled set whose classes or image size are not those of the test images.

    Returns:
        a warning where the classes of one side have numbers as names, and are matched by their order; else "".

    Raises:
        InputError: shapes, or the names of the classes, differ.
    """
    if tuple(distilled.images.shape[1:]) != test.image_shape:
        shape = tuple(distilled.images.shape[1:])
        advice = "give the same --image-size" if shape[0] == test.image_shape[0] else "give the --dataset of the set"
        raise InputError(f"the distilled images are {shape}, those of {test.name} {test.image_shape}; {advice}")
    if len(distilled.classes) != test.num_classes:
        raise InputError(
            f"the distilled set has {len(distilled.classes)} classes, {test.name} {test.num_classes}; give --dataset"
        )
    in_set, in_test = distilled.classes, test.classes
    if in_set == in_test or (sorted(in_set) == sorted(in_test) and len({*in_set}) == len(in_set)):
        return ""
    if _are_numbers(in_set) or _are_numbers(in_test):
        named, numbered = (
            ("the distilled set", test.name) if _are_numbers(in_test) else (test.name, "the distilled set")
        )
        return f"classes of {numbered} are numbers: number 0 is taken for the first class of {named}, and so on"
    only_set, only_test = (", ".join(sorted(set(a) - set(b))[:5]) for a, b in ((in_set, in_test), (in_test, in_set)))
    raise InputError(
        f"only the distilled set has the classes {only_set or 'of one name'}, only {test.name} has "
        f"{only_test or 'none'}; a set is evaluated on the classes that it was made of: give --dataset or --data-dir"
    )


def _are_numbers(classes: tuple[str, ...]) -> bool:
    """Return whether the names are the numbers of the classes, 0 to K - 1, which name nothing."""
    return list(classes) == [str(number) for number in range(len(classes))]


def in_order_of(distilled: DistilledSet, real: ImageSet) -> ImageSet:
    """Return real images with their labels in the distilled set's order of the classes.

    Args:
        distilled: the set.
        real: images that passed `check`.
    """
    other_order = real.classes != distilled.classes and sorted(real.classes) == sorted(distilled.classes)
    return real.ordered_as(distilled.classes) if other_order else real
