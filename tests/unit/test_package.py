"""What `pip install .` gives: `robust` alone, typed to the last symbol, torch its only hard requirement."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, by the backend that pip calls; of a copy, since setuptools leaves in the tree what it built."""
    tree, out = tmp_path_factory.mktemp("build") / "tree", tmp_path_factory.mktemp("wheel")
    copytree(ROOT, tree, ignore=ignore_patterns(".*", "__pycache__", "runs", "data", "build", "dist", "*.egg-info"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, out], cwd=tree, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_robust_and_its_metadata(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "robust").rglob("*.py")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == sources | {"robust/py.typed"}
    assert {Path(name).name for name in metadata} == {"METADATA", "WHEEL", "RECORD", "top_level.txt", "LICENSE"}


def test_torch_is_the_only_hard_requirement(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    about = Parser().parsestr(archive.read(name).decode())
    requirements = about.get_all("Requires-Dist")
    assert [r for r in requirements if "extra ==" not in r] == ["torch<3,>=2.6"]
    assert set(about.get_all("Provides-Extra")) == {"attacks", "spectrum"}
    assert not [r for r in requirements if r.startswith("torchattacks")]  # it would bring requests of 2021 (pyproject)


def test_every_public_symbol_has_a_type(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    # it asks the first python of the path where torch is, whatever --pythonpath says
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--verifytypes", "robust", "--ignoreexternal"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Type completeness score: 100%" in done.stdout
    assert str(tmp_path / "robust" / "py.typed") in done.stdout  # it looked at the package of the wheel
