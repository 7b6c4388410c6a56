"""What contributors rely on: workflows, hooks, templates and CONTRIBUTING are valid and name what exists."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
ELEMENTS = {"input", "textarea", "dropdown", "checkboxes", "markdown"}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def read(path: Path) -> dict:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_all_kinds_are_there() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "lint", "docs"}
    assert {path.stem for path in TEMPLATES} == {"bug", "number", "method"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_one(path: Path) -> None:
    content = read(path)
    assert content["name"] == path.stem
    assert set(content[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert job["timeout-minutes"] > 0
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
            files = step.get("with", {}).get("cache-dependency-path", "").split()
            words = shlex.split(step.get("run", ""), comments=True)
            files += [word for word in words if word.endswith((".txt", ".sh"))]
            assert all(any(ROOT.glob(name)) for name in files), files


def test_the_workflows_run_what_people_run() -> None:
    commands = {
        step["run"]
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    }
    assert {"bash run.sh test", "python -m ruff check .", "python -m ruff format --check ."} <= commands
    assert {"python -m basedpyright", "python -m zensical build --strict"} <= commands


def test_hooks_use_the_project_s_own_versions() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format", "basedpyright"]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        words = shlex.split(hook["entry"])
        assert words[:2] == ["bash", "-c"]
        assert words[2].startswith('PATH="$PWD/.venv/bin:$PATH" exec python -m ')


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_a_form(path: Path) -> None:
    content = read(path)
    assert {"name", "description", "labels", "body"} == set(content)
    ids = [element["id"] for element in content["body"] if element["type"] != "markdown"]
    assert len({*ids}) == len(ids) > 0
    for element in content["body"]:
        assert element["type"] in ELEMENTS
        assert element["attributes"]["label"]
        if element["type"] in ("dropdown", "checkboxes"):
            assert element["attributes"]["options"]


def test_links_of_contributing_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", CONTRIBUTING)
    paths = re.findall(r"`((?:tests|docs|distill|sre2l|baselines|robust)/[\w./-]+)`", CONTRIBUTING)
    assert links
    assert paths
    assert all((ROOT / name).exists() for name in [*links, *paths] if "://" not in name)


def test_the_fast_check_leaves_out_marked_tests() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert [marker.partition(":")[0] for marker in markers] == ["slow", "long"]
    assert 'set -- -m "not slow and not long" "$@"' in (ROOT / "run.sh").read_text()
    assert "bash run.sh test --fast" in CONTRIBUTING
