"""`bash run.sh bench [NAME ...]`: every file of this folder with a `bench()` that returns rows is a bench."""

import argparse
import importlib
import os
import pkgutil
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import torch

import tests.bench
from tests.bench.side_by_side import environment, save

NAMES = sorted(i.name for i in pkgutil.iter_modules(tests.bench.__path__) if i.name not in ("__main__", "side_by_side"))


def main() -> int:
    """Run the benches that are named, or all.

    Returns:
        the exit code.
    """
    parser = argparse.ArgumentParser(prog="bash run.sh bench", description="Ratios against the textbook form.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON files (%(default)s)")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in NAMES:
            print(f"run.sh: no bench {name!r}; choose from {', '.join(NAMES)}", file=sys.stderr)
            return 2
    if asked.threads < 1:
        print(f"run.sh: --threads is {asked.threads}; it must be >= 1", file=sys.stderr)
        return 2
    torch.set_num_threads(asked.threads)
    print(", ".join(f"{key} {value}" for key, value in environment().items()))
    for name in asked.names or NAMES:
        path = save(name, importlib.import_module(f"tests.bench.{name}").bench(), asked.out)
        print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
