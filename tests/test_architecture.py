"""The plan of the house, held: who may import whom, no rooms without a name, no field that nothing reads."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from distill.__main__ import Place
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Experiment
from distill.methods.dc import Config
from distill.students import Training
from robust import PGD, CurvatureRegularizedLoss, Threat

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "robust": {"robust"},
    "distill": {"robust", "distill"},
    "sre2l": {"robust", "distill", "sre2l"},
    "baselines": {"robust", "distill", "baselines"},
}
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if path.name != "__main__.py":
        assert imported(path) & set(MAY_IMPORT) <= MAY_IMPORT[package]
    if package == "robust":
        assert imported(path) <= {"robust", "torch", *sys.stdlib_module_names}


def test_nobody_imports_the_composition_root() -> None:
    assert not [path for path in SOURCES if "distill.__main__" in path.read_text(encoding="utf-8")]


def test_rooms_have_names() -> None:
    nameless = {"utils", "helpers", "misc", "common", "tmp", "new", "v2"}
    assert not [path for path in SOURCES if path.stem in nameless]


def test_files_are_of_one_idea() -> None:
    assert {str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400} == set()


@pytest.mark.parametrize(
    "config", [Config, CurvatureRegularizedLoss, PGD, Threat, Training, Evaluation, Experiment, Place, DistilledSet]
)
def test_every_field_is_read(config: type) -> None:
    read = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {field.name for field in fields(config)} <= read


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["basedpyright"]], ids=" ".join)
def test_checks(tool: list[str]) -> None:
    targets = ["robust"] if tool == ["basedpyright"] else ["robust", "distill", "tests"]
    done = subprocess.run(
        [sys.executable, "-m", *tool, *targets], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
