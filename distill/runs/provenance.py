"""What a result was computed with: versions, device, commit and command."""

import hashlib
import platform
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distill.runs.version import commit, project_version

__all__ = ["provenance"]


def provenance(device: torch.device, description: Any = None) -> dict[str, Any]:
    """Return what a number needs beside its config: versions, device, commit and command.

    Args:
        device: of the run.
        description: the experiment as JSON has it, for `sources`.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "version": project_version(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "numpy", "kornia", "timm")},
        "device": f"{device} ({name})",
        "commit": commit(),
        "command": sys.argv,
    } | ({"sources": found} if (found := sources(description)) else {})


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
