"""What a result was computed with: versions, device, commit and command."""

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distill.phrases import counted
from distill.runs.own_files import read_record
from distill.runs.version import commit, project_version

__all__ = ["computed_with", "device_name", "provenance"]


def provenance(device: torch.device, description: Any = None) -> dict[str, Any]:
    """Return what a number needs beside its config: versions, device, commit and command.

    Args:
        device: of the run.
        description: the experiment as JSON has it, for `sources`.
    """
    return {
        "version": project_version(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "numpy", "kornia", "timm")},
        "device": device_name(device),
        "commit": commit(),
        "command": sys.argv,
    } | ({"sources": found} if (found := sources(description)) else {})


def device_name(device: torch.device) -> str:
    """Return a device with its model, and a CPU with the number of cores that this process may use.

    >>> device_name(torch.device("cpu")).startswith("cpu (")
    True
    """
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{device} ({_processor()}, {counted(cores, 'core')})"


def _processor() -> str:
    """Return the model of the processor; Linux has it in a file, other systems tell Python."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), "") or platform.processor() or platform.machine()


def computed_with(folders: Iterable[Path]) -> str:
    """Return a sentence with the commits, versions of torch and devices of several runs, in order of first appearance.

    Args:
        folders: of the runs; one without a record adds nothing.

    Returns:
        the sentence, "" where no run has such a record.

    Raises:
        InputError: the record of a run is damaged.
    """
    found: dict[str, list[str]] = {"at commit": [], "with torch": [], "on": []}
    for folder in folders:
        made_by = (read_record(folder) or {}).get("made_by")
        if isinstance(made_by, dict):
            versions = made_by.get("versions")
            values = (made_by.get("commit"), versions and versions.get("torch"), made_by.get("device"))
            for known, value in zip(found.values(), values, strict=True):
                known += [str(value)] * (value is not None and str(value) not in known)
    parts = [f"{name} {' and '.join(values)}" for name, values in found.items() if values]
    return f"Computed {', '.join(parts)}." if parts else ""


def sources(description: Any) -> dict[str, dict[str, str]]:
    """Return where the objects of other packages came from that an experiment names as `package.module:name`.

    Args:
        description: the experiment as JSON has it: dicts, lists, texts.

    Returns:
        by module: its file, the sha256 of that file, and the version of its package where it has one.
    """
    if isinstance(description, (dict, list)):
        items = description.values() if isinstance(description, dict) else description
        return {name: found for item in items for name, found in sources(item).items()}
    modules = re.findall(r"\b([A-Za-z_]\w*(?:\.\w+)+):[A-Za-z_]", description) if isinstance(description, str) else []
    found: dict[str, dict[str, str]] = {}
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            found[name] = {"file": file, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
            with suppress(PackageNotFoundError):
                found[name]["version"] = version(name.partition(".")[0])
    return found
