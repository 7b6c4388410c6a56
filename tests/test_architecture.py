"""The plan of the house, held: who may import whom, no rooms without a name, no field that nothing reads."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from baselines import coreset, dcc, full
from baselines.cafe import method as cafe
from baselines.cafe.alignment import Weights
from baselines.dd import method as dd
from baselines.dim import method as dim
from baselines.dim.gan import Adversarial
from baselines.dm import method as dm
from baselines.frepo import method as frepo
from baselines.kip import method as kip
from baselines.mtt import method as mtt
from baselines.mtt.trajectories import Expert
from distill.app.export import ExportCommand
from distill.app.start import RunOptions
from distill.data import Facts
from distill.distilled import DistilledSet
from distill.evaluation.column_kinds import Certification
from distill.experiment import Evaluation, Experiment
from distill.method_training import MethodTraining
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
    VMIFGSM,
    AdversarialTraining,
    CurvatureRegularizedLoss,
    DeepFool,
    GaussianNoise,
    GradientNorm,
    Jitter,
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
PACKAGES = ("robust", "distill", "baselines", "sre2l")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FLOOR = {"robust.ranges", "robust.per_example", "robust.spec", "robust.threat", "robust.preprocess", "robust.registry"}
"""files of robust that belong to no room"""
CORE_NAMES = ("errors", "outside", "phrases", "runs", "models", "data", "method_training", "distilled", "training")
CORE_NAMES += ("experiment",)
CORE = {f"distill.{name}" for name in CORE_NAMES}
METHODS = {"distill.methods", "baselines", "sre2l"}
ARROWS: dict[str, set[str]] = {
    # robust: torch alone
    "robust.ranges": set(),
    "robust.per_example": set(),
    "robust.spec": {"robust.ranges"},
    "robust.threat": {"robust.ranges", "robust.per_example", "robust.spec"},
    "robust.preprocess": {"robust.ranges"},
    "robust.registry": {"robust.threat"},
    "robust.memory": set(),
    "robust.network": FLOOR,
    "robust.second_order": FLOOR | {"robust.network"},
    "robust.losses": FLOOR | {"robust.network", "robust.second_order"},
    "robust.attacks": FLOOR | {"robust.network", "robust.losses"},
    "robust.theory": FLOOR | {"robust.network", "robust.second_order", "robust.losses", "robust.attacks"},
    "robust.evaluation": FLOOR | {"robust.network", "robust.losses", "robust.attacks"},
    "robust.teacher": FLOOR | {"robust.network", "robust.second_order", "robust.losses"},
    # the core of distill
    "distill.errors": set(),
    "distill.outside": {"distill.errors"},
    "distill.phrases": set(),
    "distill.runs": {"distill.errors", "distill.phrases"},
    "distill.models": {"distill.errors", "distill.outside"},
    "distill.data": {"distill.errors", "distill.outside", "distill.runs"},
    "distill.method_training": set(),
    "distill.distilled": {"distill.errors", "distill.runs", "distill.data", "distill.method_training"},
    "distill.training": CORE - {"distill.training", "distill.experiment"},
    "distill.experiment": {"distill.errors", "distill.data", "distill.training"},
    # methods, and beside them what is done with their sets
    "distill.methods": CORE,
    "baselines": CORE | {"distill.methods", "sre2l"},
    "sre2l": CORE | {"distill.methods"},
    "distill.evaluation": CORE,
    "distill.published": CORE,
    "distill.reports": CORE | {"distill.evaluation"},
    # the only room that looks into all others
    "distill.app": CORE | METHODS | {"distill.evaluation", "distill.published", "distill.reports"},
    "distill.__main__": {"distill.app", "distill.runs"},
}
"""room -> the rooms that it may import, beside itself; outside robust, every room may import robust"""
REGISTRIES = {"distill/app/registry.py", "distill/data/__init__.py", "distill/models/__init__.py"}
REGISTRIES |= {"robust/registry.py", "robust/spec.py"}
"""files that import modules by a name that is found at run time; all other imports are statements"""


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


def room(module: str) -> str:
    """Return the room of a module: a package of methods is one, of robust and distill each folder and each file."""
    first, *rest = module.split(".")
    return first if first in METHODS or not rest else f"{first}.{rest[0]}"


def arrows(path: Path) -> set[str]:
    """Return the rooms that a file imports, inside functions too, but for its own; robust is one of them outside it."""
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            modules |= {f"{base}.{alias.name}" if base in PACKAGES else base for alias in node.names}
    rooms = {room(module) for module in modules if module.split(".")[0] in PACKAGES}
    return {name for name in rooms if name != own and (own.startswith("robust") or not name.startswith("robust"))}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if own in PACKAGES and own not in METHODS:  # robust/__init__.py has the public names of its rooms
        assert own == "robust"
    else:
        assert own in ARROWS, f"{own} is a new room: say in ARROWS which rooms it may import"
        assert arrows(path) <= ARROWS[own]
    if own.startswith("robust"):
        assert imported(path) <= {"robust", "torch", *OPTIONAL, *sys.stdlib_module_names}
        at_the_top = ast.Module([node for node in ast.parse(path.read_text()).body if _is_import(node)], [])
        assert imported(at_the_top) <= {"robust", "torch", *sys.stdlib_module_names}


def test_arrows_have_no_cycle() -> None:
    done: list[str] = []
    while ready := [name for name, allowed in ARROWS.items() if name not in done and allowed <= set(done)]:
        done += ready
    assert set(done) == set(ARROWS)


def test_modules_are_imported_by_statements() -> None:
    """An import written as a string is an arrow that nobody sees."""
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"\bimport_module\b|\b__import__\b|\bimportlib\b(?!\.(metadata|util))", path.read_text())
    }
    assert found <= REGISTRIES


def test_no_module_takes_the_private_names_of_another() -> None:
    taken = {
        f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert taken == set()


def test_rooms_have_names() -> None:
    nameless = {"utils", "helpers", "misc", "common", "tmp", "new", "v2"}
    assert not [path for path in SOURCES if path.stem in nameless]


def test_files_are_of_one_idea() -> None:
    assert {str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400} == set()


@pytest.mark.parametrize(
    "config",
    [
        *(dc.Config, cafe.Config, coreset.Config, dcc.Config, dd.Config, dim.Config, dm.Config),
        *(frepo.Config, full.Config, kip.Config, mtt.Config, Adversarial, Expert, Weights, Facts),
        *(
            Certification,
            Training,
            Evaluation,
            Experiment,
            RunOptions,
            DistilledSet,
            MethodTraining,
            Reading,
            ExportCommand,
            Raw,
        ),
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
        *(DeepFool, JSMA, Jitter, Noise, Transfer, VMIFGSM),
        *(pipeline.Config, Squeeze, Recover, Relabel, Batch, Validate, Compute, Protocol),
    ],
)
def test_every_field_is_read(config: type) -> None:
    assert {field.name for field in fields(config)} <= attributes_read()


@cache
def attributes_read() -> set[str]:
    """Return the names of all attributes that the product reads."""
    return {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.long
@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["basedpyright"]], ids=" ".join)
def test_checks(tool: list[str]) -> None:
    linted = ["robust", "distill", "baselines", "sre2l", "examples", "docs", "tests"]
    # basedpyright reads what it checks from pyproject.toml, and needs the interpreter that has the packages
    targets = ["--pythonpath", sys.executable] if tool == ["basedpyright"] else linted
    done = subprocess.run(
        [sys.executable, "-m", *tool, *targets], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
