"""The plan of the house, held: who may import whom, no rooms without a name, no field that nothing reads."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from baselines import coreset, dcc, dd, dm, full
from baselines.cafe import method as cafe
from baselines.cafe.alignment import Weights
from baselines.dim import method as dim
from baselines.dim.gan import Adversarial
from baselines.frepo import method as frepo
from baselines.kip import method as kip
from baselines.mtt import method as mtt
from baselines.mtt.trajectories import Expert
from distill.app.export import ExportCommand
from distill.app.start import RunOptions
from distill.distilled import DistilledSet
from distill.evaluation.columns import Certification
from distill.experiment import Evaluation, Experiment
from distill.methods import dc
from distill.published.raw import Raw
from distill.published.reading import Reading
from distill.training.crop_labels import Batch
from distill.training.protocol import Protocol
from distill.training.students import Training
from robust import (
    APGD,
    CW,
    FAB,
    JSMA,
    PGD,
    TRADES,
    AdversarialTraining,
    CurvatureRegularizedLoss,
    DeepFool,
    GaussianNoise,
    GradientNorm,
    Noise,
    Square,
    Threat,
    Transfer,
)
from sre2l import pipeline
from sre2l.precision import Compute
from sre2l.recover import Recover
from sre2l.relabel import Relabel
from sre2l.squeeze import Squeeze
from sre2l.validate import Validate

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "robust": {"robust"},
    "distill": {"robust", "distill"},
    "sre2l": {"robust", "distill", "sre2l"},
    "baselines": {"robust", "distill", "baselines"},
}
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


OPTIONAL = {"torchattacks", "scipy", "numpy", "PIL"}
"""what `robust` imports inside the functions that need it"""


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def imported(source: Path | ast.AST) -> set[str]:
    """Return the top-level names that a file or a tree imports, inside functions too."""
    found = set()
    tree = ast.parse(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if path.name != "__main__.py":
        assert imported(path) & set(MAY_IMPORT) <= MAY_IMPORT[package]
    if package == "robust":
        assert imported(path) <= {"robust", "torch", *OPTIONAL, *sys.stdlib_module_names}
        at_the_top = ast.Module([node for node in ast.parse(path.read_text()).body if _is_import(node)], [])
        assert imported(at_the_top) <= {"robust", "torch", *sys.stdlib_module_names}


def test_nobody_imports_the_composition_root() -> None:
    assert not [path for path in SOURCES if "distill.app.main" in path.read_text(encoding="utf-8")]


def test_rooms_have_names() -> None:
    nameless = {"utils", "helpers", "misc", "common", "tmp", "new", "v2"}
    assert not [path for path in SOURCES if path.stem in nameless]


def test_files_are_of_one_idea() -> None:
    assert {str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400} == set()


@pytest.mark.parametrize(
    "config",
    [
        *(dc.Config, cafe.Config, coreset.Config, dcc.Config, dd.Config, dim.Config, dm.Config),
        *(frepo.Config, full.Config, kip.Config, mtt.Config, Adversarial, Expert, Weights),
        *(Certification, Training, Evaluation, Experiment, RunOptions, DistilledSet, Reading, ExportCommand, Raw),
        *(
            Threat,
            PGD,
            CurvatureRegularizedLoss,
            AdversarialTraining,
            TRADES,
            GradientNorm,
            GaussianNoise,
            APGD,
            FAB,
            Square,
            CW,
        ),
        *(DeepFool, JSMA, Noise, Transfer),
        *(pipeline.Config, Squeeze, Recover, Relabel, Batch, Validate, Compute, Protocol),
    ],
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
    linted = ["robust", "distill", "baselines", "sre2l", "examples", "docs", "tests"]
    targets = ["robust"] if tool == ["basedpyright"] else linted
    done = subprocess.run(
        [sys.executable, "-m", *tool, *targets], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
