"""`keep_memory`, in processes of its own: the setting is of a whole process."""

import subprocess
import sys
from pathlib import Path

import pytest

from robust import memory

ROOT = Path(__file__).parent.parent.parent
PAGE_FAULTS = """
import resource, sys, torch, robust
if sys.argv[1] == "keep":
    assert robust.keep_memory()
for _ in range(3):
    torch.empty(10_000_000).zero_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.empty(10_000_000).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PAGE_FAULTS, word]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not memory._is_glibc(), reason="the setting is of glibc")
def test_kept_memory_is_used_again() -> None:
    assert faults("keep") < 100
    assert faults("leave") > 1000  # three times 40 MB of new pages; less if the system's pages are large


def test_nothing_happens_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("no library is called"))
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_memory()
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.os, "confstr", lambda name: "", raising=False)
    assert not memory.keep_memory()


@pytest.mark.parametrize(("refused", "kept"), [((), True), ((-3,), True), ((-3, -4), False), ((-1,), False)])
def test_a_glibc_that_refuses_the_threshold_maps_no_blocks(
    refused: tuple[int, ...], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            return parameter not in refused

    monkeypatch.setattr(memory, "_is_glibc", lambda: True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library)
    assert memory.keep_memory() is kept


def test_no_other_function_keeps_memory() -> None:
    calls = [path for path in (ROOT / "robust").rglob("*.py") if "mallopt" in path.read_text(encoding="utf-8")]
    assert calls == [ROOT / "robust/memory.py"]
