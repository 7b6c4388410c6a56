"""A learning rate, or a weight, that is too large: one line that names the flag, and nothing to continue from."""

from pathlib import Path

import pytest

from distill.runs.divergence import is_finite
from distill.runs.files import read_state
from tests.faults.outcomes import outcome
from tests.faults.test_damage import SMALL, STUDENTS
from tests.faults.test_full_disk import MTT

NET = ["--backbone", "convnet:width=4"]
DM = [*NET, "--iterations", "20", "--batch-real", "8"]
CAFE = [*NET, "--iterations", "2", "--window", "2", "--max-steps", "2", "--max-epochs", "2", "--batch-real", "8"]
DIM = ["--width", "4", "--gan-epochs", "1", "--gan-batch", "8", "--match-epochs", "1", "--match-batch", "8"]
SRE2L = ["--backbone", "convnet:width=4,norm=batch", "--squeeze.epochs", "2", "--squeeze.batch-size", "8"]
SRE2L += ["--recover.iterations", "5", "--relabel.epochs", "2", "--relabel.batch-size", "2"]
CASES = [
    ("dc", [*SMALL, "--iterations", "5", "--lr-img", "1e20"], "--lr-img"),
    ("guard_dc", [*SMALL, "--iterations", "5", "--real-loss", "guard:weight=1e30"], "weight of --real-loss"),
    ("dc", [*SMALL, "--lr-net", "1e30", "--ipc", "2"], "--lr-net"),
    ("dm", [*DM, "--lr-img", "1e30"], "--lr-img"),
]
MORE = [
    ("dsa", [*SMALL, "--iterations", "5", "--lr-img", "1e20"], "--lr-img"),
    ("guard_dsa", [*SMALL, "--iterations", "5", "--lr-img", "1e20"], "--lr-img"),
    (
        "dcc",
        [*SMALL, "--iterations", "5", "--lr-img", "1e30", "--outer-warmup", "1", "--inner-warmup", "1"],
        "--lr-img",
    ),
    ("guard_dcc", [*SMALL, "--iterations", "5", "--lr-img", "1e30", "--outer-warmup", "1"], "--lr-img"),
    ("guard_dm", [*DM, "--extractor-epochs", "2", "--batch-train", "8", "--lr-net", "1e30"], "--lr-net"),
    ("herding", [*NET, "--extractor-epochs", "2", "--lr-net", "1e30"], "--lr-net"),
    ("cafe", [*CAFE, "--lr-img", "1e30"], "--lr-img"),
    ("mtt", [*MTT[2:], "--lr-img", "1e30"], "--lr-img"),
    ("mtt", [*MTT[2:], "--lr-expert", "1e30"], "--lr-expert"),
    ("tesla", [*MTT[2:], "--lr-img", "1e30"], "--lr-img"),
    ("frepo", [*NET, "--iterations", "20", "--lr-img", "1e30"], "--lr-img"),
    ("dd", [*NET, "--epochs", "3", "--batch-size", "8", "--distill-lr", "1e30"], "--distill-lr"),
    ("sldd", [*NET, "--epochs", "3", "--batch-size", "8", "--lr", "1e30"], "--lr"),
    ("dim", [*DIM, "--gan-lr", "1e30"], "--gan-lr"),
    ("sre2l", [*SRE2L, "--squeeze.lr", "1e30"], "--squeeze.lr"),
]


@pytest.mark.parametrize(
    ("method", "flags", "named"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_what_diverges_is_one_line(
    method: str, flags: list[str], named: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [method, "folder", "--data-dir", str(data), "--runs", str(tmp_path)]
    code, line = outcome([*common, *STUDENTS, *flags], capsys)
    assert code == 2
    assert " diverged in " in line
    assert named in line.partition("take a smaller ")[2]
    assert not list(tmp_path.rglob("distilled.safetensors"))
    assert all(is_finite(read_state(path)) for path in tmp_path.rglob("state.pt"))
    if method == "dc" and named == "--lr-img":  # nothing was there to continue from: a smaller one may have the folder
        assert outcome([*common, *STUDENTS, *SMALL, "--lr-img", "0.1"], capsys)[0] == 0


def test_a_set_that_teaches_nothing_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At this rate the images are finite, and noise."""
    words = ["dm", "folder", "--data-dir", str(data), "--runs", str(tmp_path), *DM, *STUDENTS, "--lr-img", "1e6"]
    from distill.app.main import main

    assert main(words) == 0
    said = capsys.readouterr().err
    assert "warning: students are right on 50.0 % of the images without an attack, and chance is 50.0 %" in said
    assert main(words) == 0  # and again where the run is finished
    assert "and chance is 50.0 %" in capsys.readouterr().err
