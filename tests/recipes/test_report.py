"""Reports: whole pages of real runs, which need no connection and give nothing of the machine away."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from distill.app.main import main
from distill.data import label
from distill.evaluation.shown import read_shown
from distill.reports.run_page import command_of

SMALL = ["--backbone", "convnet:width=4", "--iterations", "3", "--batch-real", "4", "--ipc", "2", "--outer-loop", "1"]
SMALL += ["--students", "2", "--student.epochs", "20", "--attacks", "linf_star,linf,fgsm"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of DC with two seeds, and of random images."""
    folder = tmp_path_factory.mktemp("runs")
    shared = ["folder", "--data-dir", data, "--runs", folder]
    assert run("dc", *shared, *SMALL) == run("dc", *shared, *SMALL, "--seed", "1") == 0
    students = SMALL[-6:]
    assert run("random", *shared, "--backbone", "convnet:width=4", "--ipc", "2", *students) == 0
    return folder


@pytest.fixture
def first(runs: Path, data: Path) -> Path:
    return runs / "dc" / label("folder", data) / "ipc2" / "seed0"


class Words(HTMLParser):
    """The headings, the texts and the attributes of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.headings: list[str] = []
        self.text, self.values, self.open = "", [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = tag
        self.values += [(tag, name, value or "") for name, value in attrs]
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        if self.open != "style":
            self.text += data
        if self.open == "h2" and data.strip():
            self.headings[-1] += data


def check_alone(html: str, *places: Path) -> Words:
    """Check that a page needs nothing from elsewhere, has texts for its images, and names no place of the machine."""
    page = Words(html)
    for tag, name, value in page.values:
        assert tag not in ("script", "link", "iframe", "object")
        if name in ("src", "href", "data", "action", "srcset"):
            assert value.startswith(("data:image/", "#")), value[:60]
        assert not name.startswith("on")
    assert "@import" not in html
    assert "url(" not in html
    assert all(value for tag, name, value in page.values if (tag, name) == ("img", "alt"))
    assert not any(str(place) in html for place in places)
    return page


def test_a_run_ends_with_a_report(first: Path, runs: Path, data: Path) -> None:
    page = check_alone((first / "report.html").read_text(), runs, data)
    assert page.headings == [
        "Results",
        "Distilled images",
        "What an attack changes",
        "Classes",
        "Distillation",
        "How to repeat this run",
    ]
    row = json.loads((first / "results.jsonl").read_text().splitlines()[0])
    assert "The accuracy without an attack is" in page.text
    assert f"{row['dataset']}, 2 images per class" in page.text
    assert all(name in page.text for name in ("linf 2/255", "linf_star 8/255", "fgsm", "Accuracy by class"))


def test_a_command_has_no_place_of_the_machine() -> None:
    words = ["/somewhere/distill/__main__.py", "dc", "cifar10", "--data-dir", "/mnt/data", "--ipc", "10"]
    words += ["--runs=/mnt/runs", "--processes", "2", "--real-loss", "guard:weight=3", "--name", "two words"]
    expected = "bash run.sh dc cifar10 --data-dir DIR --ipc 10 --real-loss guard:weight=3 --name 'two words'"
    assert command_of(words) == expected
    assert command_of(["/usr/bin/pytest", "tests"]) == command_of(None) == command_of(["x"]) == ""


def test_what_is_shown_is_what_the_students_say(first: Path) -> None:
    shown = read_shown(first)
    assert shown is not None
    rows = [json.loads(line) for line in (first / "results.jsonl").read_text().splitlines()]
    clean = [row["accuracy"] for row in rows if row["attack"] == "clean"]
    found = (shown.answers == shown.labels).double().mean(1)
    torch.testing.assert_close(100 * found, torch.tensor(clean, dtype=torch.float64))
    examples = shown.examples
    assert examples is not None
    assert examples.attack == "linf"
    change = (examples.attacked.float() - examples.images.float()).abs().amax((1, 2, 3))
    assert (change <= 2 / 255 + 1e-3).all()
    assert (change > 1 / 255).all()
    assert (examples.probabilities[0].argmax(1) == examples.labels).all()  # of images that are classified right
    assert (examples.probabilities[1].gather(1, examples.labels[:, None]) < 1).all()


def test_a_report_of_several_runs_compares_them(runs: Path, data: Path, tmp_path: Path) -> None:
    assert run("report", runs, "--out", tmp_path / "all.html") == 0
    page = check_alone((tmp_path / "all.html").read_text(), runs, data)
    assert page.headings == [f"{label('folder', data)}, 2 images per class"]
    assert "Difference to dc in points" in page.text
    assert re.search(r"random\s*[+-]\d+\.\d \(p [=<] ", page.text)
    assert "2 x 2" in page.text  # sets x students
    two = [next((runs / method).rglob("report.html")) for method in ("dc", "random")]
    before = [path.read_text() for path in two]
    assert run("report", *(path.parent for path in two), "--runs", runs) == 0
    assert [path.read_text() for path in two] == before  # each run keeps its own page
    assert "Runs side by side" in (runs / "report.html").read_text()
    assert run("report", "--benchmark", "--runs", runs) == 0
    assert "The benchmark" in (runs / "benchmark" / "report.html").read_text()


def test_a_report_can_be_made_again(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (first / "report.html").read_text()
    assert run("report", first, "--out", tmp_path / "again.html") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again.html'}\n"
    assert (tmp_path / "again.html").read_text() == before


def test_a_run_of_an_earlier_version_has_a_report_without_examples(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "run")
    (tmp_path / "run" / "students" / "shown.safetensors").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert run("report", tmp_path / "run") == 0
    page = Words((tmp_path / "run" / "report.html").read_text())
    assert page.headings == ["Results", "Distilled images", "How to repeat this run"]


def test_an_evaluation_shows_the_set_where_it_was(first: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "run")
    words = ["--data-dir", data, "--runs", tmp_path / "runs", "--students", "1", "--student.epochs", "5"]
    assert run("evaluate", tmp_path / "run", *words, "--attacks", "fgsm@2/255") == 0
    (path,) = (tmp_path / "runs").rglob("report.html")
    without_set = ["Results", "What an attack changes", "Classes", "How to repeat this run"]
    assert Words(path.read_text()).headings == [without_set[0], "Distilled images", *without_set[1:]]
    shutil.rmtree(tmp_path / "run")
    assert run("report", path.parent) == 0
    page = Words(path.read_text())
    assert page.headings == without_set
    assert "above" in page.text  # the name of a class


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["NOWHERE"], "there is no folder NOWHERE"),
        (["--frontier", "--runs", "NOWHERE"], "there is no frontier below NOWHERE"),
        (["--benchmark", "--runs", "NOWHERE"], "there is no run below NOWHERE"),
        (["NOWHERE", "--benchmark"], "give one of them"),
    ],
)
def test_a_report_of_nothing_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_an_error_or_a_request(width: int, first: Path, tmp_path: Path) -> None:
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--enable-logging=stderr", f"--window-size={width},900", f"--log-net-log={tmp_path / 'net.json'}"]
    words += ["--virtual-time-budget=2000", "--dump-dom", (first / "report.html").as_uri()]
    assert CHROMIUM is not None
    found = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, check=True)
    assert "How to repeat this run" in found.stdout
    assert "CONSOLE" not in found.stderr
    hosts = set(re.findall(r'"url":"https?://([^/"]*)', (tmp_path / "net.json").read_text()))
    assert not {host for host in hosts if not host.endswith((".google.com", ".googleapis.com"))}  # the browser's own
