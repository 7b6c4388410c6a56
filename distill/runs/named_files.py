"""Files and folders that a setting names: beside the path stands the digest of the content, teacher.pt@0123456789ab.

A run is told from others by its settings. With the digest among them, other content under the same path is another run,
and a run that is continued or repeated later sees that the content has changed.
"""

import re
from collections.abc import Callable
from pathlib import Path

from distill.errors import InputError
from distill.runs.files import hash_of

__all__ = ["NAMED", "path_of", "unchanged", "with_digest"]

NAMED = re.compile(r"(.+)@([0-9a-f]{12})")
"""a path, and the first digits of the sha256 of its content"""


def with_digest(path: str, digest: Callable[[Path], str] = hash_of) -> str:
    """Return a path with the digest of its content; the same text if it has one, or nothing can be read there.

    Args:
        path: of a file, or of what `digest` reads.
        digest: path -> hexadecimal digits; raises OSError or InputError.

    >>> with_digest("teacher.pt@0123456789ab"), with_digest("no/such/file.pt")
    ('teacher.pt@0123456789ab', 'no/such/file.pt')
    """
    if not path or NAMED.fullmatch(path):
        return path
    try:
        return f"{path}@{digest(Path(path))[:12]}"
    except (OSError, InputError):
        return path


def path_of(named: str) -> Path:
    """Return the path without the digest.

    >>> path_of("runs/teacher.pt@0123456789ab").name, path_of("teacher.pt").name
    ('teacher.pt', 'teacher.pt')
    """
    found = NAMED.fullmatch(named)
    return Path(found[1] if found else named)


def unchanged(named: str, setting: str, digest: Callable[[Path], str] = hash_of) -> Path:
    """Return the path of content that is still what it was when the run was named.

    Args:
        named: as `with_digest` returns it.
        setting: name of the setting, for the message.
        digest: as of `with_digest`.

    Raises:
        InputError: the content has changed; or `digest` refuses it.
    """
    found, path = NAMED.fullmatch(named), path_of(named)
    if found and path.exists() and not digest(path).startswith(found[2]):
        raise InputError(f"{setting} is {path}: it has changed since this run was named; start a new run")
    return path
