"""Damaged sets of every format: each is read or refused with one line, and nothing else happens."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import main, outcome, write_all
from tests.fuzz.sets import WRITERS

BY_PYARROW = "hf"
"""whose library may end the process: in one of its own"""
HERE = tuple(kind for kind in WRITERS if kind != BY_PYARROW)
EACH = 50
"""cases of each kind"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "whole"
    write_all(root, HERE)
    return root


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", range(len(HERE)), ids=HERE)
def test_damaged_sets_are_read_or_refused(place: int, whole: Path, tmp_path: Path) -> None:
    numbers = range(place, place + EACH * len(HERE), len(HERE))
    found = [outcome(number, whole, tmp_path / "case", HERE) for number in numbers]
    assert [said for what, said in found if what == "fault"] == []
    assert {what for what, _ in found} == {"read", "refused"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WRITERS)
def test_whole_sets_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == BY_PYARROW:
        pytest.importorskip("datasets")
    write_all(tmp_path / "whole", [kind])
    monkeypatch.setattr("tests.fuzz.campaign.mutate", lambda folder, random: "nothing")
    assert outcome(0, tmp_path / "whole", tmp_path / "case", (kind,))[0] == "read"


def test_damaged_arrow_files_are_read_or_refused() -> None:
    pytest.importorskip("datasets")
    counts, faults = main(0, 60, (BY_PYARROW,))
    assert faults == []
    assert counts.total() == 60


@pytest.mark.slow
def test_many_damaged_sets_are_read_or_refused() -> None:
    counts, faults = main(10_000, 3_200)
    assert faults == []
    assert counts.total() == 3_200
