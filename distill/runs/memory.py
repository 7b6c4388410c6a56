"""The most memory that a run has taken, in memory.json of its folder."""

import json
import resource
import sys
from pathlib import Path

import torch

from distill.runs.files import write_text
from distill.runs.foreign import read_text

__all__ = ["peak_memory", "record_peak_memory"]

FILE = "memory.json"


def record_peak_memory(folder: Path) -> None:
    """Write the peaks of this process, and those of earlier processes of the run where they were larger.

    Args:
        folder: of the run.
    """
    found = peak_memory(folder)
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = {"process": of_process, "device": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}
    write_text(folder / FILE, json.dumps({name: max(now[name], found.get(name, 0)) for name in now}) + "\n")


def peak_memory(folder: Path) -> dict[str, int]:
    """Return the peaks in bytes, of the "process" and of the "device"; nothing where no process recorded them."""
    try:
        found = json.loads(read_text(folder / FILE))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int)} if isinstance(found, dict) else {}
