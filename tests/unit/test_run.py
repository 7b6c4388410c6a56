"""A run's folder: addressed randomness, atomic files, refusal of what belongs to another."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from distill.errors import InputError
from distill.runs.files import read_tensors, write_atomic, write_tensors
from distill.runs.locks import locked
from distill.runs.ranks import alone
from distill.runs.run import Run


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1


@dataclass(frozen=True)
class Whole:
    inner: Inner = Inner()
    ipc: int = 1


def draw(run: Run, *address: str | int) -> list[float]:
    return torch.rand(3, generator=run.generator(*address)).tolist()


def test_randomness_is_addressed(tmp_path: Path) -> None:
    run, again, other = Run(tmp_path / "a", Whole()), Run(tmp_path / "b", Whole()), Run(tmp_path / "c", Whole(), seed=1)
    before = torch.get_rng_state()
    assert draw(run, "batch", 1) == draw(run, "batch", 1) == draw(again, "batch", 1)
    addresses = [("batch", 1), ("batch", 2), ("batch", 1, 2), ("batch", 12), ("other", 1)]
    assert len({tuple(draw(run, *address)) for address in addresses}) == len(addresses)
    assert draw(run, "batch", 1) != draw(other, "batch", 1)
    assert torch.equal(before, torch.get_rng_state())


def test_state_comes_back(tmp_path: Path) -> None:
    run = Run(tmp_path, Whole())
    assert run.restore() is None
    run.save(3, {"images": torch.arange(4.0), "iteration": 3})
    state = Run(tmp_path, Whole()).restore()
    assert state is not None
    assert state["iteration"] == 3
    assert torch.equal(state["images"], torch.arange(4.0))
    run.finish()
    assert Run(tmp_path, Whole()).restore() is None


def test_a_checkpoint_is_due_with_time(tmp_path: Path) -> None:
    assert Run(tmp_path, Whole(), checkpoint_seconds=0.0).due()
    assert not Run(tmp_path, Whole(), checkpoint_seconds=1000.0).due()


def test_a_task_has_a_checkpoint_and_scalars_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = Run(tmp_path, {"a": 1})
    with alone():  # as in a task
        task = run.of_task("000")
        task.log(0, loss=1.0)
        task.save(1, {"x": 1})
        run.log(0, loss=1.0)  # the main process has this file
    assert run.of_task("000").restore() == {"x": 1}
    assert (tmp_path / "000" / "metrics.jsonl").read_text().count("loss") == 1
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(InputError, match="belongs to another experiment"):
        Run(tmp_path, {"a": 2}).of_task("000").restore()


def test_scalars_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path, Whole()).begin()
    for step in range(4):
        run.log(step, loss=step)
    run.save(2, {})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run = Run(tmp_path, Whole())
    run.restore()
    run.log(2, loss=20.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 0.0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 20.0}]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    Run(tmp_path, Whole(ipc=3))  # looks only
    Run(tmp_path, Whole()).begin()
    Run(tmp_path, Whole()).begin().save(1, {})
    with pytest.raises(InputError, match=r"inner\.lr is 0\.1 there, 0\.2 now; ipc is 1 there, 2 now"):
        Run(tmp_path, Whole(Inner(0.2), 2))


def test_a_run_that_was_refused_leaves_no_config_behind(tmp_path: Path) -> None:
    Run(tmp_path, Whole(ipc=3)).begin()  # and then it said what to change
    run = Run(tmp_path, Whole())
    with locked(tmp_path), pytest.raises(InputError, match="ipc is 3 there, 1 now"):
        Run(tmp_path, Whole())  # another process may be at work
    assert json.loads((tmp_path / "experiment.json").read_text())["experiment"]["ipc"] == 3
    run.begin()
    assert json.loads((tmp_path / "experiment.json").read_text())["experiment"]["ipc"] == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    run = Run(tmp_path, Whole()).begin()
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt is damaged or foreign"):
        run.restore()
    assert (tmp_path / "state.pt").read_bytes() == content


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_a_malicious_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path, Whole())
    torch.save(Evil(), tmp_path / "state.pt")
    with pytest.raises(InputError, match="foreign"):
        run.restore()
    assert not (tmp_path / "evil").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "a", Whole()).begin().save(1, {})
    run = Run(tmp_path / "b", Whole(ipc=2)).begin()
    (tmp_path / "a" / "state.pt").rename(tmp_path / "b" / "state.pt")
    with pytest.raises(InputError, match="belongs to another experiment"):
        run.restore()
    torch.save({"x": torch.ones(1)}, tmp_path / "b" / "state.pt")
    with pytest.raises(InputError, match="belongs to another experiment"):
        run.restore()


def test_a_damaged_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(InputError, match=r"experiment\.json is damaged"):
        Run(tmp_path, Whole())


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Run(tmp_path / "file" / "run", Whole()).begin()


@pytest.mark.long
def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path\nfrom distill.runs.locks import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    command = [sys.executable, "-c", code]
    with locked(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"another process works in {tmp_path}" in second.stderr
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


@pytest.mark.long
def test_a_shared_part_is_waited_for(tmp_path: Path) -> None:
    code = "from pathlib import Path\nfrom distill.runs.locks import locked\n"
    code += f"with locked(Path({str(tmp_path)!r}), wait=True): pass"
    with locked(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        said = second.stderr.readline()
        assert said == f"another process works in {tmp_path}, which this run needs too: waiting for it\n"
        assert second.poll() is None
    assert second.communicate(timeout=60)[1] == ""
    assert second.returncode == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fails)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_tensors_come_back_and_bytes_repeat(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.tensor([True, False])}
    write_tensors(tmp_path / "1", tensors, {"k": "v"})
    write_tensors(tmp_path / "2", tensors, {"k": "v"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    back, metadata = read_tensors(tmp_path / "1")
    assert metadata == {"k": "v"}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(InputError, match="there is no file"):
        read_tensors(tmp_path / "3")
    (tmp_path / "2").write_bytes((tmp_path / "2").read_bytes()[:-3])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "2")


def test_a_file_of_another_run_is_refused_by_its_name(tmp_path: Path) -> None:
    ours, theirs = Run(tmp_path / "ours", Whole(), seed=0), Run(tmp_path / "theirs", Whole(ipc=2), seed=0)
    for run in (ours, theirs):
        run.write_tensors("students/0.safetensors", {"weight": torch.ones(2)}, {"seconds": 1.5})
    found = ours.read_tensors("students/0.safetensors")
    assert found is not None
    assert torch.equal(found[0]["weight"], torch.ones(2))
    assert found[1] == {"seconds": 1.5}
    assert ours.read_tensors("students/1.safetensors") is None
    (tmp_path / "ours" / "students" / "0.safetensors").write_bytes(
        (tmp_path / "theirs" / "students" / "0.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match=r"students/0\.safetensors belongs to another run; delete it"):
        ours.read_tensors("students/0.safetensors")
    with pytest.raises(InputError, match="belongs to another run"):
        ours.has_tensors("students/0.safetensors")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Neither safetensors nor torch's reader compare a checksum."""
    write_tensors(tmp_path / "a.safetensors", {"weight": torch.zeros(64)})
    run = Run(tmp_path, Whole())
    run.save(1, {"images": torch.zeros(64)})
    for path, where, words in (
        (tmp_path / "a.safetensors", -4, "is damaged: its content is not what was written"),
        (tmp_path / "state.pt", None, "is damaged or foreign"),
    ):
        content = bytearray(path.read_bytes())
        at = content.index(bytes(200)) + 100 if where is None else len(content) + where
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            run.restore() if path.name == "state.pt" else read_tensors(path)


def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, Whole())
    with pytest.raises(InputError, match=r"diverged in step 2 .*; take a smaller --lr-img"):
        run.save(3, {"nets": [{"weight": torch.tensor([1.0, float("nan")])}]}, "--lr-img")
    assert not (tmp_path / "state.pt").exists()


def test_a_run_without_anything_to_continue_from_gives_its_folder_up(tmp_path: Path) -> None:
    run = Run(tmp_path, Whole()).begin()
    run.log(0, loss=1.0)
    other = Run(tmp_path, Whole(ipc=2)).begin()  # the first diverged, say
    assert other.restore() is None
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    other.save(1, {"images": torch.zeros(1)})
    with pytest.raises(InputError, match="ipc is 2 there, 1 now"):
        Run(tmp_path, Whole())


@pytest.mark.parametrize("line", ["null", "[]", "{}", '{"step": null}', "", "x", "[" * 100_000, '{"step": "1e400"}'])
def test_lines_that_are_no_scalars_are_left_out(line: str, tmp_path: Path) -> None:
    run = Run(tmp_path, Whole()).begin()
    run.log(0, loss=1.0)
    run.save(1, {})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line.encode() + b"\xff\n")
    Run(tmp_path, Whole()).restore()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"step": 0, "loss": 1.0}']


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    """The number of no process: the largest is 2^22."""
    left, others = tmp_path / "students" / ".0.safetensors.99999999.unfinished", tmp_path / ".state.pt.12345"
    alive = tmp_path / f".state.pt.{os.getpid()}.unfinished"
    for path in (left, others, alive):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with locked(tmp_path):
        assert not left.exists()
    assert others.exists()  # nobody knows whose that is
    assert alive.exists()
