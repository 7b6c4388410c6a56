"""Lines and tables of results at the paper's size: what they say of a set, and the students that they join."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.row_files import FILE, write_rows
from tests.golden import paper_size
from tests.golden.paper_size import lines_of, paper_autoattack, paper_table
from tests.rows import row

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = {"clean": 27.0, "linf_star": 2.0, "linf": 17.0, "l2": 21.0}


def run(
    folder: Path,
    accuracies: dict[str, float],
    seed: int = 0,
    iterations: int = 100,
    words: tuple[str, ...] = (),
    method: str = "guard_dc",
    epochs: int = 1000,
    **fields: Any,
) -> Path:
    """Write the files of a finished run with two students; the second has a point less in all columns."""
    folder.mkdir(parents=True)
    evaluation = {"student": {"epochs": epochs}}
    made = {"iterations": iterations} if iterations else {}
    config = made | {"real_loss": words} | fields.pop("config", {})
    of_set = {"method": method, "config": config, "distilled": fields.get("set")}
    experiment = of_set | {"evaluation": evaluation, "seed": seed}
    made_by = {"commit": "0123456789ab", "command": ["main", method, *words]}
    stored = {"experiment": experiment, "made_by": made_by} | fields
    (folder / "experiment.json").write_text(json.dumps(stored))
    name = {"method": method, "dataset": "cifar10", "set": f"set{seed}", "seed": seed, "images": 500}
    write_rows(
        folder / FILE,
        [
            row(**name, student=student, attack=attack, accuracy=accuracy - student)
            for attack, accuracy in accuracies.items()
            for student in range(2)
        ],
    )
    return folder


def test_seeds_are_joined_and_settings_are_not(tmp_path: Path) -> None:
    for seed in range(2):
        folder = run(tmp_path / "a" / f"seed{seed}", {"clean": 27.0 + 2 * seed}, seed)
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": step, "seconds": 1800.0}) + "\n" for step in range(3 + seed))
        )
    words = ("--inner-loop", "20", "--batch-real", "64", "--real-loss", "guard:weight=100,h=3")
    run(tmp_path / "b", {"clean": 20.0}, words=words)
    first, second = lines_of([tmp_path])
    assert (first["mean"], first["n"], first["sets"], first["hours"]) == ("27.50", 4, 2, "1.8")
    assert (first["set"], first["commit"], first["images"]) == ("100 iterations", "0123456", 500)
    assert (second["mean"], second["std"]) == ("19.50", "0.71")
    flags = "guard:weight=100,h=3, 64 real images a class and step, 20 epochs between steps"
    assert second["set"] == f"100 iterations, {flags}"


def test_a_set_is_named_by_what_made_it(tmp_path: Path) -> None:
    start = "/elsewhere/published/cifar10/res_DC-0123@0123456789ab"
    made = run(tmp_path / "runs" / "guard_dc", {"clean": 27.0}, iterations=15, config={"init": start})
    run(tmp_path / "runs" / "evaluate", {"clean": 26.0}, set=str(made / "distilled.safetensors"))
    run(tmp_path / "runs" / "other", {"clean": 25.0}, set="/elsewhere/published/cifar10/res_DC-0123")
    for method, accuracy in (("random", 24.0), ("full", 83.0)):
        run(tmp_path / "runs" / method, {"clean": accuracy}, iterations=0, method=method)
    sets = {line["mean"]: line["set"] for line in lines_of([tmp_path])}
    from_published = "15 iterations from the published set"
    of_methods = {"26.50": from_published, "25.50": from_published, "24.50": "published"}
    assert sets == of_methods | {"23.50": "real images", "82.50": "whole training set"}


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "a", ATTACKS)
    run(tmp_path / "b", {"clean": 28.0, "linf": 18.0, "autoattack@2/255": 16.0}, iterations=101, epochs=300)
    csv = tmp_path / "results.csv"
    lines = lines_of([tmp_path])
    csv.write_text(
        "".join(",".join(f'"{cell}"' for cell in cells) + "\n" for cells in (lines[0], *(x.values() for x in lines)))
    )
    monkeypatch.setattr(paper_size, "STORED", csv)
    *_, paper, ours = paper_table().splitlines()
    cell = "| CIFAR-10, 1 | `guard_dc` |"
    assert paper == f"{cell} the paper's | - | 4.7 ± 0.3 | 19.3 ± 0.4 | 22.5 ± 0.2 | 50, 10000 |  |  |"
    assert ours.startswith(f"{cell} 100 iterations | 26.5 ± 0.7 | 1.5 ± 0.7 (-3.2 ± ")
    assert ours.endswith("| 2, 500 |  | 0123456 |")
    assert paper_autoattack().splitlines()[2:] == [
        f"{cell} 101 iterations | 27.5 ± 0.7 | 17.5 ± 0.7 | 15.5 ± 0.7 | 2, 500 (300 epochs) | 0123456 |"
    ]


def test_the_gain_with_ten_images_is_that_of_the_stored_results() -> None:
    """The sentences of docs/paper.md and of the README on GUARD's gain, against the means of the table."""
    with (ROOT / "docs/results/paper-size.csv").open() as file:
        rows = [line for line in csv.DictReader(file) if (line["ipc"], line["sets"], line["n"]) == ("10", "3", "9")]
    mean = {(line["method"], line["attack"]): float(line["mean"]) for line in rows}
    gain = {attack: mean["guard_dc", attack] - mean["dc", attack] for attack in ("clean", "linf_star", "linf", "l2")}
    page = " ".join((ROOT / "docs/paper.md").read_text().split())
    for method, end in (("guard_dc", "{} under linf, {} under linf_star and {} under l2"), ("dc", "{}, {} and {}")):
        assert end.format(*(f"{mean[method, attack]:.1f}" for attack in ("linf", "linf_star", "l2"))) in page
    assert f"same clean accuracy ({mean['guard_dc', 'clean']:.1f} and {mean['dc', 'clean']:.1f})" in page
    assert f"by {gain['linf']:.1f} points under linf" in page
    assert f"{gain['linf_star']:.1f} under linf_star (0.1" in page
    assert f"and {gain['l2']:.1f} under l2" in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"With ten CIFAR-10 images GUARD gains {['zero', 'one', 'two'][round(gain['linf'])]} points" in readme
    assert abs(gain["clean"]) < 0.5
    assert "at equal clean accuracy" in readme


def test_the_sentences_on_whole_sets_and_on_autoattack_are_those_of_the_stored_results() -> None:
    with (ROOT / "docs/results/paper-size.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = " ".join((ROOT / "docs/paper.md").read_text().split())

    def means(data: str, attack: str, ipc: str = "1", students: str = "500") -> list[float]:
        alike = {"dataset": data, "attack": attack, "ipc": ipc, "images": students}
        rest = [row for row in rows if row["method"] != "full" and alike.items() <= row.items()]
        return [float(row["mean"]) for row in rest]

    def whole(data: str, attack: str) -> float:
        (row,) = (row for row in rows if (row["dataset"], row["method"], row["attack"]) == (data, "full", attack))
        return float(row["mean"])

    mnist, cifar = whole("mnist", "linf"), whole("cifar10", "linf")
    assert f"{mnist:.1f} under linf after two epochs, {mnist - max(means('mnist', 'linf')):.0f} points more" in page
    more = [f"{cifar - max(means('cifar10', 'linf', ipc)):.0f}" for ipc in ("1", "10")]
    assert f"{cifar:.1f} after three, {' and '.join(more)} points more than the best sets of one and ten images" in page
    star = means("cifar10", "linf_star")
    within = f"({min(star):.1f} to {max(star):.1f})"
    assert f"has {whole('cifar10', 'linf_star'):.1f}, less than any set of one image {within}" in page
    fooled = {}
    for method in ("guard_dc", "dc"):
        found = {row["attack"]: float(row["mean"]) for row in rows if _judged(row, method)}
        fooled[method] = round(2 * (found["linf"] - found["autoattack@0.1"]))  # of 200 answers
    assert fooled == {"guard_dc": 5, "dc": 9}
    assert "it fools five (GUARD) and nine (DC) more" in page


def _judged(row: dict[str, str], method: str) -> bool:
    """Return whether a row is of a set of one MNIST image under AutoAttack and beside it."""
    return (row["dataset"], row["method"], row["images"]) == ("mnist", method, "100")
