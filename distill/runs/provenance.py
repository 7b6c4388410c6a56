"""What a result was computed with: versions, device, commit and command."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance"]


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what a number needs beside its config: versions, device, commit and command."""
    here = Path(__file__).parents[2]
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    sources = ["git", "-C", str(here), "status", "--porcelain", "--", "*.py"]  # describe does not see untracked files
    try:
        commit, changed = (
            subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (git, sources)
        )
        commit = f"{commit.removesuffix('-dirty')}-dirty" if changed else commit
    except (OSError, subprocess.SubprocessError):
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "numpy", "kornia", "timm")},
        "device": f"{device} ({name})",
        "commit": commit,
        "command": sys.argv,
    }
