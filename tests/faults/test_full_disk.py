"""A disk that is full at any write: one line, exit code 2, nothing lost; with space the same command ends as ever."""

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.outcomes import outcome
from tests.faults.test_damage import SMALL, STUDENTS

RUN = ["dc", "folder", *SMALL]
MTT = ["mtt", "folder", "--num-experts", "1", "--train-epochs", "2", "--expert-epochs", "1", "--max-start-epoch", "2"]
MTT += ["--batch-train", "8", "--iterations", "2", "--syn-steps", "2", "--lr-img", "0.1", *STUDENTS]
MTT += ["--backbone", "convnet:width=4"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk but for the error's name; Python ignores the signal for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name.endswith(".unfinished")]


def table(runs: Path) -> str:
    return next(runs.rglob("table.csv")).read_text()


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of runs that always had space."""
    from distill.app.main import main
    from distill.evaluation import student_tasks

    found, patch = {}, pytest.MonkeyPatch()
    patch.setattr(student_tasks, "advised_columns", lambda *_: {})
    for words in (RUN, MTT):
        place = tmp_path_factory.mktemp(words[0])
        assert main([*words, "--data-dir", str(data), "--runs", str(place)]) == 0
        found[words[0]] = table(place)
    patch.undo()
    return found


SIZES = [0, 100, 700, 1500, 3000, 6000, 10_000, 14_000, 20_000, 30_000, 60_000]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        *((RUN, size) if size in (0, 700, 6000) else pytest.param(RUN, size, marks=pytest.mark.slow) for size in SIZES),
        *(pytest.param(MTT, size, marks=pytest.mark.slow) for size in SIZES),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_file_that_cannot_grow_is_one_line(
    words: list[str],
    size: int,
    expected: dict[str, str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*words, "--data-dir", str(data), "--runs", str(tmp_path)]
    with files_of_at_most(size):
        code, line = outcome(command, capsys)
    if size < 1000:
        assert code == 2
    if code == 2:
        assert "File too large" in line
    assert leftovers(tmp_path) == []
    assert outcome(command, capsys)[0] == 0
    assert table(tmp_path) == expected[words[0]]


@pytest.mark.slow
@pytest.mark.parametrize("words", [RUN, MTT], ids=["dc", "mtt"])
@pytest.mark.parametrize("kilobytes", [4, 12, 24, 40, 60, 100, 180])
def test_a_full_disk_is_one_line(
    words: list[str],
    kilobytes: int,
    expected: dict[str, str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        command = [*words, "--data-dir", str(data), "--runs", str(place)]
        code, line = outcome(command, capsys)
        if code == 2:
            assert "No space left" in line
        assert leftovers(place) == []
        subprocess.run(["mount", "-o", "remount,size=20m", str(place)], check=True)
        assert outcome(command, capsys)[0] == 0
        assert table(place) == expected[words[0]]
    finally:
        subprocess.run(["umount", str(place)], check=True)
