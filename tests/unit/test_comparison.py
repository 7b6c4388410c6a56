"""Tables beside the paper's numbers."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.rows import Row
from distill.reports.comparison import LAYOUTS
from distill.reports.paper import PAPER
from distill.runs.files import write_text
from tests.rows import row as any_row


def row(method: str, attack: str, accuracy: float, student: int = 0, **other: Any) -> Row:
    threat = {"clean": ""}.get(attack, "linf:2/255")
    cell = {"dataset": "cifar10", "ipc": 10, "recipe": "paper", "config": "abc", "threat": threat}
    return any_row(**cell | {"method": method, "attack": attack, "accuracy": accuracy, "student": student} | other)


ROWS = [
    *(row("dc", "clean", accuracy, k) for k, accuracy in enumerate((44.0, 46.0))),
    *(row("dc", "linf", accuracy, k) for k, accuracy in enumerate((20.0, 21.0))),
    row("guard_dc", "clean", 43.0),
    row("guard_dc", "linf", 24.5),
    row("full", "clean", 80.0, ipc=1),
    row("full", "linf", 30.0, ipc=1),
    row("tesla", "clean", 40.0, loss="own"),
    row("dc", "clean", 30.0, dataset="mnist-16px", verdict="suspicious: odd"),
]


def test_markdown_has_the_papers_number_the_difference_and_the_best_in_bold() -> None:
    text = LAYOUTS["md"](ROWS)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "cifar10, ipc 10, students convnet"
    assert lines[2] == "| method | students | clean | linf 2/255 | n |"
    assert lines[4:8] == [
        "| dc | cross_entropy | **45.0 ± 1.4** (45.3, -0.3 ± 17.7) | 20.5 ± 0.7 (18.8, +1.7 ± 11.3) | 2 |",
        "| guard_dc | cross_entropy | 43.0 | **24.5** (23.5, +1.0) | 1 |",
        "| full | cross_entropy | 80.0 | 30.0 | 1 |",
        "| tesla | own | 40.0 | - | 1 |",
    ]
    assert lines[9] == "mnist-16px, ipc 10, students convnet"
    assert lines[13] == "| dc | cross_entropy | ~~30.0~~ ? (96.4, -66.4) | 1 |"  # what is in doubt is not the best
    assert lines[15] == "? dc, clean: suspicious: odd"
    assert len({len(line) for line in text.splitlines()[2:8]}) == 1


def test_latex_has_the_groups_side_by_side() -> None:
    lines = LAYOUTS["tex"](ROWS).splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrr}"
    assert lines[3] == r" & \multicolumn{3}{c}{cifar10, ipc 10} & \multicolumn{2}{c}{mnist-16px, ipc 10} \\"
    assert lines[4] == r"method & clean & linf 2/255 & n & clean & n \\"
    assert lines[6] == (
        r"dc & \textbf{45.0 $\pm$ 1.4} (45.3, -0.3 $\pm$ 17.7) & 20.5 $\pm$ 0.7 (18.8, +1.7 $\pm$ 11.3) & 2 & "
        r"\sout{30.0} ? (96.4, -66.4) & 1 \\"
    )
    assert lines[7] == r"guard\_dc & 43.0 & \textbf{24.5} (23.5, +1.0) & 1 & - & - \\"
    assert lines[9] == r"tesla (own) & 40.0 & - & 1 & - & - \\"
    assert all(ord(letter) < 128 for letter in "".join(lines))


def test_csv_has_a_line_a_number() -> None:
    lines = list(csv.DictReader(io.StringIO(LAYOUTS["csv"](ROWS))))
    assert len(lines) == 8
    found = {(line["dataset"], line["method"], line["attack"]): line for line in lines}
    dc = found["cifar10", "dc", "linf"]
    assert (dc["mean"], dc["std"], dc["n"], dc["paper"], dc["difference"]) == ("20.50", "0.71", "2", "18.80", "1.70")
    assert found["cifar10", "guard_dc", "linf"]["paper_std"] == "0.40"
    assert found["cifar10", "full", "clean"]["paper"] == ""
    assert found["mnist-16px", "dc", "clean"]["verdict"] == "suspicious: odd"


def test_the_whole_set_is_in_the_lines_of_every_ipc() -> None:
    rows = [row(method, "clean", 40.0, ipc=ipc) for method, ipc in (("dc", 1), ("dc", 10), ("full", 1))]
    lines = list(csv.DictReader(io.StringIO(LAYOUTS["csv"](rows))))
    assert sorted((line["method"], line["ipc"]) for line in lines) == [
        ("dc", "1"),
        ("dc", "10"),
        ("full", "1"),
        ("full", "10"),
    ]


def test_networks_that_differ_are_told() -> None:
    rows = [row("dc", "clean", 40.0), row("dd", "clean", 30.0, backbone="lenet")]
    lines = [" ".join(line.split()) for line in LAYOUTS["md"](rows).splitlines()]
    assert lines[0] == "cifar10, ipc 10"
    assert lines[2] == "| method | students | network | clean | n |"
    assert lines[5] == "| dd | cross_entropy | lenet | 30.0 (36.8, -6.8) | 1 |"
    assert r"dd (lenet) & 30.0 (36.8, -6.8) & 1 \\" in LAYOUTS["tex"](rows)
    assert [line["backbone"] for line in csv.DictReader(io.StringIO(LAYOUTS["csv"](rows)))] == ["convnet", "lenet"]


def test_every_seed_config_and_threat_has_its_place() -> None:
    """The last of several rows of a method took the place of the others."""
    seeds = [row("dc", "clean", 40.0 + seed, k, seed=seed, set=f"set{seed}") for seed in range(3) for k in range(3)]
    other = [row("dc", "clean", 90.0, config="other")]
    two = [row("dc", "linf", 20.0), row("dc", "linf", 5.0, threat="linf:8/255")]
    lines = [" ".join(line.split()) for line in LAYOUTS["md"](seeds + other + two).splitlines()]
    assert lines[2] == "| method | students | config | clean | linf 2/255 | linf 8/255 | n |"
    assert (
        lines[4]
        == "| dc | cross_entropy | abc | 41.0 ± 0.9 (45.3, -4.3 ± 12.4) | **20.0** (18.8, +1.2) | **5.0** | 9/1 |"
    )
    assert lines[5] == "| dc | cross_entropy | other | **90.0** (45.3, +44.7) | - | - | 1 |"
    assert r"dc (abc) & 41.0" in LAYOUTS["tex"](seeds + other)
    csv_lines = list(csv.DictReader(io.StringIO(LAYOUTS["csv"](seeds + other + two))))
    assert [(line["config"], line["threat"], line["n"]) for line in csv_lines] == [
        ("abc", "", "9"),
        ("abc", "linf:2/255", "1"),
        ("abc", "linf:8/255", "1"),
        ("other", "", "1"),
    ]


def test_methods_are_ranked_by_the_attack_without_a_bias() -> None:
    column, accuracies = "pgd_ce_margin@2/255", {"dc": 20.0, "frepo": 22.0, "mtt": 30.0, "full": 50.0}
    rows = [row(method, column, value) for method, value in accuracies.items()]
    rows[2] = replace(rows[2], verdict="suspicious: odd", advised="square@2/255", advised_accuracy=3.0)
    lines = [" ".join(line.split()) for line in LAYOUTS["md"](rows).splitlines()]
    assert lines[2] == f"| method | students | {column} | n | rank |"
    assert [line.split(" | ")[-1] for line in lines[4:8]] == ["2 |", "1 |", "- |", "- |"]
    assert "~~30.0~~ ? 3.0 by square@2/255" in lines[6]
    assert "**22.0**" in lines[5]


def test_ranks_by_one_of_two_threats_name_it() -> None:
    """The rank by the attack at 2/255 stood beside the column of 8/255 as "rank"."""
    two = (("2/255", {"dc": 20.0, "dm": 22.0}), ("8/255", {"dc": 9.0, "dm": 1.0}))
    rows = [
        row(method, f"pgd_ce_margin@{eps}", value, threat=f"linf:{eps}")
        for eps, accuracies in two
        for method, value in accuracies.items()
    ]
    lines = [[cell.strip() for cell in line.split(" | ")] for line in LAYOUTS["md"](rows).splitlines()]
    assert lines[2][-1] == "rank by pgd_ce_margin@2/255 |"
    assert [line[-1] for line in lines[4:6]] == ["2                           |", "1                           |"]


def test_two_configurations_of_a_cell_are_two_rows_and_the_difference_is_named(tmp_path: Path) -> None:
    rows = []
    for config, lr in (("aa", 0.1), ("bb", 0.2)):
        write_text(tmp_path / config / "experiment.json", json.dumps({"experiment": {"config": {"lr_img": lr}}}))
        rows.append(replace(row("dc", "clean", 40.0, config=config), folder=tmp_path / config))
    text = LAYOUTS["md"](rows)
    assert [line.split()[5] for line in text.splitlines()[4:6]] == ["aa", "bb"]
    assert "\nconfig aa and bb (dc on cifar10, ipc 10) differ in config.lr_img 0.1 and 0.2\n" in text


def test_zero_is_not_the_best_of_anything() -> None:
    assert "**" not in LAYOUTS["md"]([row("dc", "clean", 0.02)])


def test_what_looks_equal_is_best_together() -> None:
    assert LAYOUTS["md"]([row("dc", "clean", 40.01), row("dm", "clean", 40.02)]).count("**40.0**") == 2


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_the_paper_is_consistent(dataset: str) -> None:
    """No attack is better than clean, nor the larger of two balls than the smaller."""
    for (name, ipc, method, attack), (value, _) in PAPER.items():
        clean = PAPER.get((name, ipc, method, "clean"))
        assert 0 <= value <= 100
        if name == dataset and clean:
            assert value <= clean[0]
        if name == dataset and attack == "linf_star" and method != "dim":  # of DiM the paper has this column alone
            assert value <= PAPER[name, ipc, method, "linf"][0]
    assert PAPER["cifar10", 10, "guard_dc", "linf"] == (23.5, 0.4)
