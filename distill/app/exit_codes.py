"""The exit code of a command, or of one of its processes: an expected error becomes one line on standard error."""

import sys
from collections.abc import Callable

import torch

from distill.errors import InputError, one_line
from distill.runs.launch import INTERRUPTED, interrupted
from distill.runs.ranks import claim_error_report, failed_elsewhere, reports_to_user

__all__ = ["exit_code_of"]


def exit_code_of(work: Callable[[], int]) -> int:
    """Do the work and return its exit code.

    Args:
        work: returns an exit code, or raises.

    Returns:
        0 done; 2 bad input, missing data, or memory or a disk that is full; 130 interrupted.

    Raises:
        Exception: an error of the program.
    """
    try:
        try:
            return work()
        except Exception as error:
            if interrupted():  # the error is what a library made of the interruption, such as "the file is damaged"
                raise KeyboardInterrupt from error
            raise
    except InputError as error:
        if claim_error_report():
            print(one_line(f"run.sh: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the program that reads our output has ended
        sys.stdout = None
        return 0
    except OSError as error:  # usually of a file or a folder
        prefix = f"cannot use {error.filename}: " if error.filename else ""
        print(one_line(f"run.sh: {prefix}{error.strerror or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if failed_elsewhere():
            return 2
        if reports_to_user():
            print(INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        if failed_elsewhere():  # another process of this run failed during a shared step
            return 2
        if not _is_out_of_memory(error):
            raise
        advice = "use a smaller batch, network or image size"
        print(one_line(f"run.sh: out of memory ({one_line(error, 120)}); {advice}"), file=sys.stderr)
        return 2


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch raises a separate class of error only on GPUs."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
