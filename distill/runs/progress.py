"""Progress bars with the time left: a bar in a terminal, a line every 20 seconds in a log."""

import sys

from tqdm import tqdm

from distill.runs.ranks import shows_progress

__all__ = ["human", "progress"]


def progress(description: str, total: int, done: int = 0, unit: str = "it") -> tqdm:
    """Return a bar, to be used in a `with` block and moved by `.update()`.

    Args:
        description: name of the work.
        total: units of the whole work.
        done: units that an earlier process did (a resumed run); the estimate of the time left ignores them.
        unit: name of the unit.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 20.0,
        maxinterval=20.0,
        smoothing=0.1,
        bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n",
        leave=not terminal,
        disable=not shows_progress(),
    )


def human(seconds: float) -> str:
    """Return a duration as text with a suitable unit.

    >>> [human(s) for s in (0.0123, 1.25, 40, 150, 9000, 300000, 1.2e7)]
    ['12.3 ms', '1.2 seconds', '40 seconds', '2.5 minutes', '2.5 hours', '3.5 days', '139 days']
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            count = seconds / length
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"
    if seconds >= 0.9995:
        return f"{seconds:.0f} seconds" if seconds >= 9.5 else f"{seconds:.2g} seconds"
    return f"{1000 * seconds:.3g} ms"
