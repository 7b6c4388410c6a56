"""Image files that cannot be read: found before the work starts, and named in one line."""

import os
from collections.abc import Sequence

import numpy as np

from distill.data.decode import decode_file, reason
from distill.data.threads import file_bar, in_threads
from distill.errors import InputError

__all__ = ["find_damaged", "refusal"]


def find_damaged(paths: np.ndarray) -> list[tuple[int, str]]:
    """Decode every file and return (index, reason) of each damaged file."""

    def why(path: bytes | str) -> str:
        try:
            decode_file(path)
        except Exception as error:  # as of `decode_file`
            return reason(error)
        return ""

    with file_bar("checking images", len(paths)) as bar:
        found = []
        for index, fault in enumerate(in_threads(why, paths)):
            if fault:
                found.append((index, fault))
            bar.update()
    return found


def refusal(damaged: Sequence[tuple[bytes | str, str]], total: int = 0) -> InputError:
    """Return the error for damaged files.

    Args:
        damaged: paths and reasons, at least one.
        total: number of files that were tried.

    Returns:
        the error, to be raised; the message names the first three files.

    >>> print(refusal([(b"a.jpg", "it is empty")]))
    a.jpg cannot be read as an image (it is empty): repair or remove it, or give --damaged skip
    """
    named = [f"{os.fsdecode(path)} ({why})" for path, why in damaged[:3]]
    if len(damaged) == 1:
        path, why = damaged[0]
        return InputError(
            f"{os.fsdecode(path)} cannot be read as an image ({why}): repair or remove it, or give --damaged skip"
        )
    more = ", ..." if len(damaged) > 3 else ""
    return InputError(
        f"{len(damaged):,} of {total:,} files cannot be read as images: {', '.join(named)}{more}: "
        "repair or remove them, or give --damaged skip"
    )
