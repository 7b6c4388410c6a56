"""How long a newcomer waits: `list`, and what `import robust` adds to `import torch`."""

import statistics
import subprocess
import sys

from tests.bench.side_by_side import Row, compare

IMPORT = "import time, torch; t = time.perf_counter(); import robust; print(time.perf_counter() - t)"


def bench() -> list[Row]:
    """Return the times."""

    def python(*arguments: str) -> str:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout

    rows = compare(
        "start-up of a process",
        {
            "import torch": lambda: python("-c", "import torch"),
            "import torch, robust": lambda: python("-c", "import torch, robust"),
            "python -m distill list": lambda: python("-m", "distill", "list"),
        },
    )
    added = statistics.median(float(python("-c", IMPORT)) for _ in range(5))
    print(f"  import robust after torch: {added:.3f} s")
    return [*rows, {"title": "start-up of a process", "way": "import robust after torch", "seconds": added}]
