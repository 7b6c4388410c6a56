"""CPU seconds until a newcomer sees something: commands that only print and a whole tiny job, beside `import torch`."""

import resource
import subprocess
import sys
import tempfile
from itertools import count

from tests.bench.side_by_side import Row, compare


def bench() -> list[Row]:
    """Return the CPU seconds."""
    seeds = count()

    def python(*words: str) -> None:
        subprocess.run([sys.executable, *words], capture_output=True, check=True)

    with tempfile.TemporaryDirectory() as runs:

        def job() -> None:
            flags = ("--recipe", "smoke", "--processes", "1", "--seed", str(next(seeds)), "--runs", runs)
            python("-m", "distill", "guard_dc", "digits", *flags)

        return compare(
            "start-up of a process, CPU seconds",
            {
                "import torch": lambda: python("-c", "import torch"),
                "import robust": lambda: python("-c", "import robust"),
                "guard_dc digits --recipe smoke, whole": job,
                "list": lambda: python("-m", "distill", "list"),
                "--help": lambda: python("-m", "distill", "--help"),
                "table": lambda: python("-m", "distill", "table", runs),
            },
            repeats=2,
            clock=_cpu_of_children,
        )


def _cpu_of_children() -> float:
    """Return the CPU seconds, of user and system, of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
