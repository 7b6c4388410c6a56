"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

import errno
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import InputError
from distill.runs.foreign import brief, open_regular, parse_json, refuse_irregular
from distill.runs.ranks import is_main_process
from distill.runs.version import check_key

__all__ = [
    "UNFINISHED",
    "Checkpoint",
    "disk_errors",
    "hash_of",
    "read_tensors",
    "remove_unfinished",
    "write_atomic",
    "write_error",
    "write_tensors",
    "write_text",
]

UNFINISHED = ".unfinished"
"""ending of the temporary name of a file; the next process that locks the folder removes those of killed processes"""
FACTS = "guard-facts-1"
"""key of safetensors' metadata for the facts in a file of a run, as one JSON text: several keys have no order"""
SEAL = "sha256"
"""name of the fact with the hash of a file's tensors and facts: safetensors itself has no checksum"""
PROBE = 2**20
"""bytes that are written to learn why a write failed"""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under a temporary name, then rename it.

    Args:
        path: where the file goes; its folder is made.
        write: writes the file of the path that it is called with.

    Raises:
        InputError: the file cannot be written: no space, no permission, a folder of that name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
        try:
            with disk_errors(temporary.parent):
                write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def write_error(path: Path, error: OSError) -> InputError:
    """Make the error for a file that cannot be written."""
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "make space, and the same command continues" if full else "choose another folder (--runs DIR)"
    return InputError(f"cannot write {path}: {reason}; {advice}")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise the error of the disk where a library that writes hides it behind an error of its own (torch, safetensors).

    Args:
        folder: where the library writes.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except OSError:
        raise
    except Exception:
        probe = folder / f".probe.{os.getpid()}{UNFINISHED}"
        try:  # a full disk refuses this too; any other fault is a fault of ours
            probe.write_bytes(bytes(PROBE))
        finally:
            probe.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove unfinished files of killed processes of this machine.

    Args:
        folder: of the files.
        name: of the files, without the temporary ending; "*" for any.
    """
    for left in folder.glob(f".{name}.*{UNFINISHED}"):
        writer = left.name.removesuffix(UNFINISHED).rpartition(".")[2]
        if not writer.isdecimal() or _is_alive(int(writer)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None, key: str = FACTS
) -> None:
    """Write tensors as safetensors, atomically; the same content gives the same bytes.

    Args:
        path: of the file.
        tensors: by name.
        facts: of JSON's types, stored beside them; a hash of the content is added, which reveals damage.
        key: of safetensors' metadata, where the facts are stored.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = dict(facts or {})
    metadata = {key: json.dumps(facts | {SEAL: _seal(contiguous, facts)})}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata))


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the sha256 of contiguous tensors on the CPU and of the facts beside them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of(path: Path | str | bytes) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(
    path: Path, only: Iterable[str] | None = None, key: str = FACTS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a safetensors file, on the CPU.

    Args:
        path: of the file.
        only: names of the tensors to read; None for all tensors, whose content is then compared with the file's hash.
        key: of the metadata, where the facts are.

    Returns:
        tensors by name; the facts, or the plain metadata of a file without that key.

    Raises:
        InputError: there is no such file, or it is damaged, of another format, or of a newer version's format.
    """
    advice = "; delete it to have it made anew" if path.suffix == ".safetensors" else ""
    refuse_irregular(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if only is None else only
            tensors, metadata = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # safetensors raises one private exception for everything that it refuses
        raise InputError(f"{path} is not a whole safetensors file ({brief(error)}){advice}") from None
    check_key(path, key, metadata)
    if key not in metadata:
        return tensors, dict(metadata)
    try:
        facts = dict(parse_json(metadata[key]))
    except (ValueError, TypeError):
        raise InputError(f"{path} has damaged metadata {key}{advice}") from None
    seal = facts.pop(SEAL, None)
    if only is None and seal not in (None, _seal(tensors, facts)):
        raise InputError(f"{path} is damaged: its content is not what was written{advice}")
    return tensors, facts


def read_state(path: Path) -> dict:
    """Return a checkpoint, read without unpickling code.

    Raises:
        InputError: the file is damaged or holds more than tensors and numbers.
    """
    refuse_irregular(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not compare them
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {bad} is another")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise InputError(
            f"checkpoint {path} is damaged or foreign ({type(error).__name__}: {brief(error)}); "
            "delete it to start this run anew, or choose another folder (--runs DIR)"
        ) from None


class Checkpoint:
    """The state of unfinished work, in one file: tensors and numbers.

    Args:
        path: of the file.
        seconds: age of the last checkpoint at which the next is due.
        main_only: whether only the main process writes it; else each process that has one.
    """

    def __init__(self, path: Path, seconds: float, *, main_only: bool = False):
        self.path, self.seconds, self.main_only = path, seconds, main_only
        self._saved_at = time.perf_counter()

    def restore(self) -> dict | None:
        """Return the last state, or None without a checkpoint.

        Raises:
            InputError: the file is damaged.
        """
        return read_state(self.path) if self.path.exists() else None

    def due(self) -> bool:
        """Tell whether the last checkpoint is old enough for another."""
        return time.perf_counter() - self._saved_at >= self.seconds

    def save(self, state: dict) -> None:
        """Write a state atomically."""
        if not self.main_only or is_main_process():
            write_atomic(self.path, lambda temporary: torch.save(state, temporary))
        self._saved_at = time.perf_counter()

    def remove(self) -> None:
        """Remove the file, once the work is done."""
        if not self.main_only or is_main_process():
            self.path.unlink(missing_ok=True)
