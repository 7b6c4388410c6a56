"""A lock on the folder of a run or of a stage, so that two runs never work in one folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import InputError
from distill.runs.files import remove_unfinished, write_error
from distill.runs.foreign import refuse_irregular
from distill.runs.ranks import is_main_process

__all__ = ["LOCK", "locked"]

LOCK = ".lock"
"""name of the file"""


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of an existing folder during the block; the lock of a killed process ends with the process.

    Args:
        folder: of a run, or of a stage that runs share.
        wait: whether to wait, with a message, for another process that has the lock; for stages, which that process
            finishes.

    Raises:
        InputError: another process has the lock, and `wait` is not set.
    """
    if not is_main_process():  # the main process holds the lock for all processes of a run
        yield
        return
    try:
        if (folder / LOCK).exists():
            refuse_irregular(folder / LOCK)
        file = open(folder / LOCK, "ab")  # noqa: SIM115  # closed below
    except OSError as error:
        raise write_error(folder / LOCK, error) from None
    with file:
        try:
            import fcntl  # not on Windows, where two processes in one folder are not noticed

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if not wait:
                    line = f"another process works in {folder}; wait for it, or choose another folder (--runs DIR)"
                    raise InputError(line) from None
                print(f"another process works in {folder}, which this run needs too: waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            for each in (folder, *filter(Path.is_dir, folder.iterdir())):
                remove_unfinished(each)
        except ImportError:
            pass
        yield
