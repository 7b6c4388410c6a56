"""Damaged sets read, each in one of three ways: read, refused with one line, or a fault.

python -m tests.fuzz.campaign 0 2000      # cases 0 to 1999, in processes that may die; any case again by its number
"""

import faulthandler
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.read import read
from distill.published.reading import Reading, import_set
from distill.training.whiten import preprocessing
from tests.fuzz.mutations import ELSEWHERE, mutate
from tests.fuzz.sets import HOW, REAL, WRITERS

ENDINGS = (".pt", ".pth", ".npz", ".safetensors", ".arrow")
"""of files that may be given instead of their folder"""
SECONDS = 20
"""that a case may take"""
MOST = 400
"""signs of a line, without the path that it may begin with or name"""
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
"""what no reader does"""

GREY = replace(REAL, images=REAL.images[:, :1], mean=REAL.mean[:1], std=REAL.std[:1])
"""real images for sets of one channel"""

_watched: list[Path] = []
_seen: list[str] = []


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in RUNS:
        _seen.append(f"{event} {given!r:.80}")
    elif event == "open" and isinstance(given[0], (str, bytes)):
        path, flags = os.fsdecode(given[0]), given[2] if isinstance(given[2], int) else 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull
        if path.startswith(ELSEWHERE) or (writes and not path.startswith((*map(str, _watched), tempfile.gettempdir()))):
            _seen.append(f"open {path}")


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Remember calls of programs, connections, and files outside a folder, and stop what takes too long."""
    if not getattr(sys, "_fuzz_hook", False):
        sys.addaudithook(_hook)
        sys._fuzz_hook = True

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watched.append(folder)
    _seen.clear()
    try:
        yield
    finally:
        _watched.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_all(root: Path, kinds: Iterable[str] = tuple(WRITERS)) -> None:
    """Write a whole set of each kind below a folder."""
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        WRITERS[kind](root / kind)


def outcome(number: int, whole: Path, place: Path, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Return what becomes of a case, "read", "refused" or "fault", and what was said or went wrong.

    Args:
        number: of the case: its seed; kinds take turns.
        whole: the folder of `write_all`.
        place: an empty folder's name, for the damaged set; removed.
        kinds: of WRITERS.
    """
    kind, random = kinds[number % len(kinds)], Random(number)
    shutil.copytree(whole / kind, place)
    try:
        changes = mutate(place, random)
        files = sorted(
            path for path in place.iterdir() if path.suffix in (".pt", ".pth", ".npz", ".safetensors", ".arrow")
        )
        path = random.choice(files) if files and random.random() < 0.4 else place
        if kind == "safetensors":
            path = place / "distilled.safetensors"
        what, said = _read(kind, path, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return what, f"{kind}, {number} ({changes}): {said}"


def _read(kind: str, path: Path, place: Path) -> tuple[str, str]:
    told, runs = io.StringIO(), place.with_name("runs")
    try:
        with watched(place), redirect_stderr(told):
            kept = path
            if kind != "safetensors":
                real = REAL if kind != "16 bits" else GREY
                kept = import_set(path, Reading(**HOW.get(kind, {})), "toy", "data", runs, real.resized, read)
            found = DistilledSet.load(kept)
            preprocessing(found, kept if kept.is_dir() else kept.parent)
            for part in found.images.split(2):
                assert part.dtype == torch.float32
                part.sum()
            assert len(found.labels) == len(found.images)
            what, said = "read", ""
    except InputError as error:
        what, said = "refused", str(error)
    except BaseException as error:  # a panic of Rust's is none of Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)[:-5:-1]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        return "fault", f"{type(error).__name__}: {str(error)[:200]!r} at {where}"
    finally:
        left = [each.name for each in runs.rglob("*") if each.is_file()]
        shutil.rmtree(runs, ignore_errors=True)
    if _seen or (what == "refused" and left):
        return "fault", f"it did {_seen} and left {left}"
    for line in (said, *told.getvalue().splitlines()):
        plain = line.replace(str(place), "PLACE").replace(str(runs), "RUNS").replace("\x1b[31m", "")
        if not plain.isprintable() or len(plain) > MOST:
            return "fault", f"a line of {len(plain)} signs: {plain[:300]!r}"
    return what, said


def main(begin: int, count: int, kinds: tuple[str, ...] = tuple(WRITERS)) -> tuple[Counter, list[str]]:
    """Run cases in a process of their own, in a new one where one dies.

    Returns:
        counts by kind and outcome, and the faults.
    """
    found, faults = Counter(), []
    at, end = begin, begin + count
    while at < end:
        words = [sys.executable, "-m", "tests.fuzz.campaign", "--child", str(at), str(end), *kinds]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                number, what, said = line.rstrip("\n").split("\t")
                at = int(number) + 1
                found[kinds[int(number) % len(kinds)], what] += 1
                if what == "fault":
                    faults.append(said)
            problem = child.stderr.read().strip()[-300:]
        if child.returncode and at < end:
            found[kinds[at % len(kinds)], "fault"] += 1
            faults.append(f"{kinds[at % len(kinds)]}, {at}: the process ended with {child.returncode} {problem!r}")
            at += 1
        elif child.returncode == 0:
            break
    return found, faults


def _child(begin: int, end: int, kinds: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder) / "whole", kinds)
        for number in range(begin, end):
            faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal comes through
            what, said = outcome(number, Path(folder) / "whole", Path(folder) / "case", kinds)
            faulthandler.cancel_dump_traceback_later()
            text = said.encode("ascii", "backslashreplace").decode().replace("\t", " ").replace("\n", "\\n")
            print(number, what, text, sep="\t", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _child(int(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]))
    else:
        counts, wrong = main(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]) or tuple(WRITERS))
        for (kind, what), times in sorted(counts.items()):
            print(f"{kind:12s} {what:8s} {times:6d}")
        print(*wrong, sep="\n")
        print(
            Counter(
                {what: sum(n for (_, w), n in counts.items() if w == what) for what in ("read", "refused", "fault")}
            )
        )
