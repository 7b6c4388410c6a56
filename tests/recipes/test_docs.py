"""The site builds without a warning; what it says of Python runs; nothing public, and no method, is left out of it."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import robust
from distill.app.registry import find_methods
from tests.golden.lists import PAGES, with_list
from tests.golden.pictures import METHODS, PICTURES, line_of
from tests.golden.results import TABLES, with_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES_OF_METHODS = sorted(path for path in (DOCS / "methods").glob("*.md") if path.stem != "index")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with links, anchors, formulas and docstrings checked."""
    place = tmp_path_factory.mktemp("site")  # a copy, because a site is built within the folder of its source
    for name in ("docs", "robust", "examples"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", place)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "griffe" not in told, told  # docstrings that contradict their functions
    return place / "site"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_formulas_are_mathml(site: Path) -> None:
    page = (site / "theory" / "index.html").read_text()
    assert page.count("<math") > 10
    assert 'class="arithmatex"' not in page
    assert page.count('<div class="formula" tabindex="0"><math') == page.count('display="block"') > 2  # they scroll


def test_a_flag_in_a_sentence_stays_on_one_line(site: Path) -> None:
    page = (site / "frontier" / "index.html").read_text()
    assert '<code><span class="flag">--at</span> 45</code>' in page
    assert 'class="flag"' not in "".join(re.findall(r"<pre.*?</pre>", page, re.DOTALL))


def test_the_reference_has_all_that_is_public(site: Path) -> None:
    pages = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    there = {name.rpartition(".")[2] for name in re.findall(r'id="(robust\.[\w.]+)"', pages)}
    assert set(robust.__all__) <= there
    assert {"curvature_penalty", "__call__", "h_warmup"} <= there
    assert '<pre><span></span><code><span class="gp">&gt;&gt;&gt;' in pages  # doctests are code, not quotations
    assert not re.search(r"<blockquote>\s*<blockquote>", pages)


def test_the_examples_are_in_it(site: Path) -> None:
    page = (site / "examples" / "index.html").read_text()
    assert page.count("GUARD, was:") == len(list((ROOT / "examples").glob("*.py"))) + 1  # the text has it too


def test_the_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in find_methods() if f"`{name}`" not in text] == []


def test_the_readme_is_read_aloud_in_two_minutes() -> None:
    text = re.sub(
        r"```.*?```|^\|.*?$|!\[.*?\]\(.*?\)|(?<=\])\(.*?\)",
        "",
        (ROOT / "README.md").read_text(),
        flags=re.DOTALL | re.M,
    )
    assert 200 < len(re.findall(r"\w[\w.'-]*", text)) < 400  # without code, tables and addresses


def _flags_by_command() -> dict[str, set[str]]:
    """Return the flags of each command and each method, from the pinned list."""
    sections = (ROOT / "tests" / "golden" / "flags.txt").read_text().split("\n\n")
    found = {part.split()[0]: set(re.findall(r"^ +(--[\w.-]+) ", part, re.MULTILINE)) for part in sections if part}
    shared = found.pop("METHOD")
    return {name: flags | shared if name in find_methods() else flags for name, flags in found.items()}


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.stem)
def test_every_command_of_a_page_has_flags_that_exist(path: Path) -> None:
    known = _flags_by_command()
    of_any = set[str]().union(*known.values()) | {"--version", "--help", "--fast", "--threads", "--long"}
    code = re.findall(r"```[^\n]*\n(.*?)```|`([^`]+)`", path.read_text(), re.DOTALL)
    lines = [line for block, _ in code for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(inline.split()) for _, inline in code]
    for line in lines:
        for text in re.findall(r"bash run\.sh ([^#|;&]+)", line):
            try:
                first, *rest = shlex.split(text.replace("[", "").replace("]", ""))
            except ValueError:  # a command that is cut short by ...
                continue
            allowed = known.get(first, of_any)
            wrong = [
                word for word in rest if word.startswith("--") and word.partition("=")[0] not in allowed | {"--help"}
            ]
            assert not wrong, f"{text.strip()}: {', '.join(wrong)}"


@pytest.mark.parametrize("name", ["docs/index", "docs/loss", "docs/how-to/tasks", "README"])
def test_python_in_the_docs_runs(name: str) -> None:
    blocks = FENCE.findall((ROOT / f"{name}.md").read_text())
    assert blocks
    network = torch.nn.Linear(7, 3)
    names = {"torch": torch, "model": network, "x": torch.ones(2, 7), "y": torch.tensor([0, 2])}
    names["guard"] = robust.CurvatureRegularizedLoss()
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, f"{name}.md", "exec"), names)


@pytest.mark.parametrize("path", PAGES_OF_METHODS, ids=lambda path: path.stem)
def test_a_method_s_page_has_all_parts(path: Path) -> None:
    headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
    assert headings == ["Equation", "Loop", "Recipe", "Traps", "Published", "Ours"]


def test_every_method_has_a_page() -> None:
    assert {method.page for method in find_methods().values()} == {path.stem for path in PAGES_OF_METHODS}


@pytest.mark.parametrize(("page", "pages"), PAGES.items())
def test_lists_of_methods_are_made_of_the_contract(page: str, pages: str) -> None:
    text = (ROOT / page).read_text()
    assert with_list(text, pages) == text, f"{page} lists other methods; store the list: python -m tests.golden.lists"


def test_doctests_and_lists_of_docstrings_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    as_markdown = import_module("doctests").as_markdown
    text = "Sum:\n  - a\n    of two\n  - b\n\n>>> 1 + 1\n2\n\nMore."
    expected = "Sum:\n\n  - a\n    of two\n  - b\n\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    assert as_markdown(text) == expected
    assert as_markdown(">>> 1\n1").endswith("\n1\n```")


@pytest.mark.parametrize("page", TABLES)
def test_tables_of_results_are_those_of_the_stored_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert with_table(page) == text, f"{page} has other numbers; store the table: python -m tests.golden.results"


@pytest.mark.parametrize("page", [path.stem for path in PAGES_OF_METHODS])
def test_the_page_of_a_method_has_its_picture(page: str) -> None:
    assert page in METHODS, "name the methods of its picture in tests/golden/pictures.py"
    assert f"\n{line_of(page)}\n" in (DOCS / "methods" / f"{page}.md").read_text()
    with Image.open(PICTURES / f"{page}.png") as picture:
        assert picture.width == 10 * (64 + 2) + 2


# --- numbers that stand in several places ------------------------------------------------------------------------

ROW = re.compile(r"^\| `(\w+)` \|((?: [\d.]+ / [\d.]+ / [\d.]+ / [\d.]+ \|){4})$", re.MULTILINE)
"""a method's four cells: clean / linf_star / linf / l2 of two data sets and two ipc"""


def test_numbers_of_the_readme_and_of_the_methods_are_those_of_the_benchmark() -> None:
    """Hold the glance of the benchmark's page, the pages of methods and the README's table equal to the tables."""
    page = (DOCS / "benchmark.md").read_text()
    cells: dict[str, list[str]] = {}
    for title in ("CIFAR-10 at 16 px, one", "CIFAR-10 at 16 px, ten", "MNIST at 16 px, one", "MNIST at 16 px, ten"):
        section = page.partition(f"### {title} ")[2].partition("\n#")[0]
        rows = re.findall(r"^\| (\w+) \|((?: [^|]+ \|){4}) \d+ \|$", section, re.MULTILINE)
        assert len(rows) == 24
        for method, row in rows:
            means = re.findall(r"\| \**([\d.]+)", f"|{row}")
            cells.setdefault(method, []).append(" / ".join(means))
    expected = {method: f" {' | '.join(found)} |" for method, found in cells.items()}
    assert dict(ROW.findall(page)) == expected
    readme = (ROOT / "README.md").read_text()
    clean, _, linf, _ = cells["full"][1].split(" / ")
    assert f"gives {clean} clean and {linf} under PGD-10" in " ".join(readme.split())
    found = [row for path in PAGES_OF_METHODS for row in ROW.findall(path.read_text())]
    assert {method for method, _ in found} == set(expected)
    assert all(row == expected[method] for method, row in found)
