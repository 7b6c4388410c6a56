"""The names that pages and pictures show for classes: ImageNet's folders have WordNet's numbers, such as n01440764."""

import re
from collections.abc import Sequence
from functools import cache

__all__ = ["readable"]

WORDNET = re.compile(r"n\d{8}")


def readable(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes as people say them: for a number of WordNet its first word, other names as they are.

    Where two numbers have one word (ImageNet's two cranes), the number stands beside it. Stored files keep the numbers.

    >>> readable(["n01440764", "n02102040", "cat"])
    ('tench', 'English springer', 'cat')
    """
    if not any(WORDNET.fullmatch(name) for name in classes):
        return tuple(classes)
    words = _words()
    names = [words.get(name, name) for name in classes]
    return tuple(
        f"{name} {stored}" if names.count(name) > 1 and name != stored else name
        for name, stored in zip(names, classes, strict=True)
    )


@cache
def _words() -> dict[str, str]:
    """Return the first word of each of WordNet's numbers that ImageNet has."""
    from timm.data.imagenet_info import ImageNetInfo  # seconds

    words: dict[str, str] = {}
    for subset in ("imagenet-22k", "imagenet-1k"):  # one number of ImageNet-1K is not among the 22K
        info = ImageNetInfo(subset)
        words |= {name: info.label_name_to_description(name).split(",")[0] for name in info.label_names()}
    return words
