"""Files that are whole or absent: written beside their place, flushed to disk, then renamed over it."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import safe_open, save_file
from torch import Tensor

from distill.errors import InputError
from distill.foreign import brief, open_regular, refuse_irregular

__all__ = ["Checkpoint", "hash_of", "read_tensors", "write_atomic", "write_tensors", "write_text"]


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under a temporary name, then put it in place at once.

    Args:
        path: where the file goes; its folder is made.
        write: writes the file whose path it gets.

    Raises:
        InputError: the file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another folder (--runs DIR)"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically; the same content gives the same bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata))


def hash_of(path: Path | str | bytes) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, only: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, on the CPU.

    Args:
        path: of the file.
        only: name of the one tensor to read; None for all.

    Raises:
        InputError: there is no such file, or it is damaged or of another format.
    """
    refuse_irregular(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if only is None else [only]
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # safetensors has one exception for all it refuses, and it is not public
        line = brief(error)
        advice = "; delete it to have it made anew" if path.suffix == ".safetensors" else ""  # as all of ours end
        raise InputError(f"{path} is not a whole safetensors file ({line}){advice}") from None


def read_state(path: Path) -> dict:
    """Return a checkpoint, read without unpickling code.

    Raises:
        InputError: it is damaged or holds more than tensors and numbers.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        line = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            f"checkpoint {path} is damaged or foreign ({type(error).__name__}: {line}); "
            "delete it to start this run anew, or choose another folder (--runs DIR)"
        ) from None


class Checkpoint:
    """The state of unfinished work, in one file: tensors and numbers.

    Args:
        path: of the file.
        seconds: a checkpoint this old is due for another.
        writes: whether this process is the one that writes it.
    """

    def __init__(self, path: Path, seconds: float, *, writes: bool = True):
        self.path, self.seconds, self.writes = path, seconds, writes
        self._saved_at = time.perf_counter()

    def restore(self) -> dict | None:
        """Return the last state, or None where there is none.

        Raises:
            InputError: the file is damaged.
        """
        return read_state(self.path) if self.path.exists() else None

    def due(self) -> bool:
        """Tell whether the last checkpoint is old enough for another."""
        return time.perf_counter() - self._saved_at >= self.seconds

    def save(self, state: dict) -> None:
        """Write a state atomically."""
        if self.writes:
            write_atomic(self.path, lambda temporary: torch.save(state, temporary))
        self._saved_at = time.perf_counter()

    def remove(self) -> None:
        """Remove the file: the work is done."""
        if self.writes:
            self.path.unlink(missing_ok=True)
