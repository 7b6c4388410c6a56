"""SRe2L as a user types it: four stages, one process and two, killed and continued, and what it says to bad input."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.app.main import main
from distill.data import _folders
from distill.distilled import DistilledSet
from tests.toy import write_toy

ROOT = Path(__file__).parent.parent.parent
NETWORK = ["--backbone", "convnet:width=4,depth=2,norm=batch"]
FLAGS = [*NETWORK, "--ipc", "4", "--squeeze.epochs", "2", "--squeeze.batch-size", "8", "--squeeze.lr", "0.05"]
FLAGS += ["--recover.iterations", "6", "--recover.batch-size", "2", "--recover.jitter", "0", "1", "--students", "2"]
FLAGS += [
    "--relabel.epochs",
    "3",
    "--relabel.batch-size",
    "4",
    "--squeeze.augment",
    "padded_crop",
    "--attacks",
    "pgd@2/255",
]
FLAGS += ["--compute.amp", "none", "--squeeze.warmup-epochs", "0"]


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def place(runs: Path, method: str = "guard_sre2l") -> Path:
    (found,) = (runs / method).glob("folder-*/ipc4/seed0")
    return found


@pytest.mark.parametrize("recipe", ["quick", "paper"])
@pytest.mark.parametrize("method", ["sre2l", "guard_sre2l", "cda", "guard_cda"])
def test_every_recipe_runs_and_leaves_a_whole_folder(
    method: str, recipe: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [method, "folder", "--data-dir", data, "--runs", tmp_path, "--recipe", recipe, *FLAGS]
    assert run(*words) == 0
    folder = place(tmp_path, method)
    names = {path.name for path in folder.glob("[!.]*")}
    assert names == {
        *(
            "distilled.safetensors",
            "experiment.json",
            "grid.png",
            "memory.json",
            "pictures",
            "report.html",
            "results.jsonl",
        ),
        *("students", "table.csv", "table.md", "teacher.jsonl"),
    }
    made = DistilledSet.load(folder)
    assert (made.method, len(made.images)) == (method, 8)
    assert len(list((folder / "pictures").rglob("*.png"))) == 8
    assert [path.name.partition("-")[0] for path in sorted((tmp_path / "stages").iterdir())] == [
        "recover",
        "relabel",
        "squeeze",
    ]
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["loss"] for row in rows} == {"own"}
    printed = capsys.readouterr()
    assert "teacher: clean " in printed.out
    assert "own, recipe" in printed.out

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(*words) == 0
    assert capsys.readouterr().out == printed.out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_stages_are_shared_and_sets_judged_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--data-dir", data, "--runs", tmp_path]
    assert run("guard_sre2l", "folder", *shared, *FLAGS) == 0
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.safetensors")}
    assert run("guard_cda", "folder", *shared, *FLAGS) == 0  # the same teacher, other images
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "stages").iterdir()) == [
        *("recover", "recover", "relabel", "relabel", "squeeze"),
    ]
    assert all(path.stat().st_mtime_ns == at for path, at in stages.items())

    folder = place(tmp_path)
    options = ["--data-dir", data, "--runs", tmp_path / "again", "--students", "1", "--attacks", "pgd@2/255"]
    assert run("evaluate", folder, *options, "--protocol", "own") == 0
    assert "own, recipe" in capsys.readouterr().out
    ours = load_file(folder / "students" / "0.safetensors")
    (again,) = (tmp_path / "again").rglob("0.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in load_file(again).items())
    assert run("evaluate", folder, *options[:3], tmp_path / "c", *options[4:], "--student.epochs", "3") == 0
    out, err = capsys.readouterr()
    assert "cross_entropy, recipe" in out
    assert "a teacher's labels of views for students of --protocol own; these train on one label an image" in err

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "distilled.safetensors").write_bytes((folder / "distilled.safetensors").read_bytes())
    assert run("evaluate", elsewhere, *options[:3], tmp_path / "d", "--protocol", "own") == 2
    assert "holds no labels" in capsys.readouterr().err


def test_published_images_are_relabelled(data: Path, tmp_path: Path) -> None:
    assert run("sre2l", "folder", "--data-dir", data, "--runs", tmp_path, *FLAGS) == 0
    pictures = place(tmp_path, "sre2l") / "pictures"
    words = ["sre2l", "folder", "--data-dir", data, "--runs", tmp_path / "b", *FLAGS, "--recover.images", pictures]
    assert run(*words) == 0
    theirs, ours = (DistilledSet.load(place(runs, "sre2l")).images for runs in (tmp_path, tmp_path / "b"))
    torch.testing.assert_close(ours, theirs, atol=0.5 / 255 + 1e-6, rtol=0)
    assert not list((tmp_path / "b" / "stages").glob("recover*"))


def start(runs: Path, data: Path, *, processes: int = 1) -> subprocess.Popen:
    words = ["guard_sre2l", "folder", "--data-dir", str(data), "--runs", str(runs), *FLAGS]
    environment = os.environ | {"NPROC": str(processes), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "run.sh"), *words, "--checkpoint-seconds", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def images_of(runs: Path) -> torch.Tensor:
    return DistilledSet.load(place(runs)).images


def test_two_processes_make_the_images_of_one_and_a_killed_worker_ends_both(data: Path, tmp_path: Path) -> None:
    """The teacher differs in BatchNorm's statistics, so one teacher is given; a worker dies while images are made."""
    one = tmp_path / "one"
    first = start(one, data)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    two = tmp_path / "two"
    (teacher,) = (one / "stages").glob("squeeze*")
    (two / "stages").mkdir(parents=True)
    (two / "stages" / teacher.name).symlink_to(teacher)

    second = start(two, data, processes=2)
    deadline = time.monotonic() + 120
    while not list((two / "stages").glob("recover*/unit*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()  # in the order of their start
    os.kill(int(workers[1]), signal.SIGKILL)
    _, err = second.communicate(timeout=300)
    assert (second.returncode, err.count("run.sh: process 1 of 2 was killed by SIGKILL: all end")) == (1, 1), err
    third = start(two, data, processes=2)
    out_two, err = third.communicate(timeout=300)
    assert third.returncode == 0, err
    assert torch.equal(images_of(one), images_of(two))
    assert "teacher: clean" in out_two
    assert out.splitlines()[0] == out_two.splitlines()[0]
    labels = [sorted((runs / "stages").glob("relabel*/epoch*")) for runs in (one, two)]
    assert [path.read_bytes() for path in labels[0]] == [path.read_bytes() for path in labels[1]]


def test_a_batch_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Squeeze and validate under gloo against one process: without BatchNorm, or with its statistics synchronised."""
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    import sys

    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*command, str(script), str(tmp_path / str(processes))],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "networks.safetensors") for name in ("1", "2"))
    assert set(one) == set(two)
    for name, tensor in one.items():
        if not name.startswith("apart."):
            torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=1e-4)
    pairs = [(name, name.replace("synchronised.", "apart.")) for name in one if name.startswith("synchronised.")]
    assert any("running_var" in name for name, _ in pairs)
    assert all(torch.equal(one[name], one[apart]) for name, apart in pairs)  # one process: the option changes nothing
    differences = [(one[apart] - two[apart]).abs().max() for _, apart in pairs]
    assert max(differences) > 1e-2  # without the option the statistics are those of the first process's part


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--squeeze.start", "nowhere.pt"], "nowhere.pt: no such file"),
        (
            ["--backbone", "timm:resnet18", "--squeeze.start", "pretrained:tv_in1"],
            "unknown tag of --squeeze.start for resnet18 'tv_in1'; did you mean 'tv_in1k'? Known: a1_in1k, a2_in1k, ",
        ),
        (["--squeeze.loss", "gaurd"], "unknown loss 'gaurd'"),
        (["--squeeze.batch-size", "64"], "squeeze.batch_size is 64; folder has 40 images"),
        (["--relabel.batch-size", "9"], "relabel.batch_size is 9, but there will be 8 distilled images"),
        (["--backbone", "convnet:width=4,depth=2"], "has no BatchNorm with statistics"),
        (["--recover.images", "nowhere"], "recover.images is nowhere: no such folder"),
        (["--recover.crop-min", "2"], "--recover.crop-min is 2.0; it must be in (0, 1]"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], line: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sre2l", "folder", "--data-dir", data, "--runs", tmp_path, *FLAGS, *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("run.sh: ")
    assert line in last


def test_a_teacher_of_other_classes_and_foreign_labels_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sre2l", "folder", "--data-dir", data, "--runs", tmp_path, *FLAGS]
    assert run(*words) == 0
    (teacher,) = (tmp_path / "stages").glob("squeeze*/teacher.safetensors")
    other = {
        name: t.repeat(2, *[1] * (t.ndim - 1)) if "classifier" in name else t for name, t in load_file(teacher).items()
    }
    save_file(other, tmp_path / "other.safetensors")
    start_there = ["--squeeze.start", tmp_path / "other.safetensors", "--squeeze.epochs", "0"]
    assert run(*words[:5], tmp_path / "b", *FLAGS, *start_there) == 2
    assert "do not fit the network: 2 tensors differ" in capsys.readouterr().err

    path = place(tmp_path, "sre2l") / "distilled.safetensors"
    made = DistilledSet.load(path)
    DistilledSet(**(made.__dict__ | {"images": made.images.flip(0)})).save(path)
    options = ["--data-dir", data, "--runs", tmp_path / "again", "--students", "1", "--protocol", "own"]
    assert run("evaluate", path, *options) == 2
    assert "belong to other images" in capsys.readouterr().err


def test_sets_in_files_from_end_to_end_without_their_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_folders, "_LIMIT", 0)
    data = write_toy(tmp_path / "toy")
    damaged = data / "train" / "above" / "000.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    options = ["--data-dir", data, "--runs", tmp_path, "--workers", "1"]
    words = ["guard_sre2l", "folder", *options, *FLAGS]
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert f"{damaged} cannot be read as an image (" in said
    assert "Traceback" not in said
    assert run(*words, "--damaged", "skip") == 0
    assert f"damaged and omitted: 1 of 80 files: {damaged}" in capsys.readouterr().err
    folder = place(tmp_path)
    assert run("evaluate", folder, *options, "--students", "1", "--attacks", "pgd@2/255", "--damaged", "skip") == 0
    assert "pgd" in capsys.readouterr().out
    places = ["--data-dir", data, "--damaged", "skip"]
    assert run("curvature", folder, *places, "--images", "4", "--students", "1") == 0
    assert (folder / "curvature" / "loss.png").exists()


def test_workers_are_counted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sre2l", "folder", "--data-dir", data, "--runs", tmp_path, *FLAGS, "--workers", "-1") == 2
    assert "--workers is -1; it must be in [0, 1024]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "words", "line"),
    [
        ("many", ["sre2l"], "NPROC is many; it takes a whole number of processes >= 1"),
        ("0", ["sre2l"], "NPROC is 0"),
        ("1000000", ["sre2l"], "1000000 processes (--processes, NPROC); this machine has place for at most"),
        ("2", ["sre2l", "--nonsense", "1"], "--nonsense"),
        ("2", ["sre2l", "--recover.crop-min", "2"], "--recover.crop-min is 2.0"),
        ("2", ["sre2l", "--relabel.batch-size", "9"], "relabel.batch_size is 9, but there will be 8"),
        ("2", ["sre2l", "--squeeze.batch-size", "64"], "squeeze.batch_size is 64; folder has 40 images"),
        ("2", ["sre2l", "--squeeze.batch-size", "7"], "it must be a multiple of 2 processes times accumulate 1"),
        ("2", ["sre2l", "--squeeze.start", "nowhere.pt"], "nowhere.pt: no such file"),
    ],
)
def test_bad_input_to_several_processes_starts_none(
    count: str,
    words: list[str],
    line: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("distill.app.processes.in_processes", lambda *_: pytest.fail("processes were started"))
    monkeypatch.setenv("NPROC", count)
    flags = FLAGS if words[0] == "sre2l" else []
    assert run(words[0], "folder", "--data-dir", data, "--runs", tmp_path, *flags, *words[1:]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("run.sh: ")
    assert line in last
    assert not list(tmp_path.iterdir())
