"""A pool of processes takes tasks: each is done once, after those that it needs, and all processes know all results."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from distill.runs import ranks
from distill.runs.divided import block, blocks, every_nth, from_main, gathered
from distill.runs.tasks import Task, do_all

ROOT = Path(__file__).parents[2]
BEGIN = """
import os, signal, sys, time
from pathlib import Path
import torch
from tqdm import tqdm
from distill.runs.divided import block, blocks, every_nth, from_main, gathered, network_from_main
from distill.runs.launch import fork
from distill.runs.ranks import alone, barrier, is_main_process, process_group, rank, shows_progress, world_size
from distill.runs.tasks import Task, do_all
torch.set_num_threads(1)
folder = Path(sys.argv[1])

def work():
    with process_group(torch.device("cpu")):
        return main()
"""
END = """
sys.exit(fork(int(sys.argv[2]), work))
"""


def in_processes(count: int, folder: Path, script: str) -> tuple[int, str]:
    """Return the exit code and the errors of a script whose `main` runs in several processes."""
    words = [sys.executable, "-c", BEGIN + script + END, str(folder), str(count)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def bar(total: int) -> tqdm:
    return tqdm(total=total, disable=True)


def test_one_process_does_the_tasks_in_their_order() -> None:
    order = []

    def task(name: str, *needs: str) -> Task:
        return Task(name, lambda found: order.append(name) or [name, sorted(found)], needs)

    tasks = [task("a"), task("b", "a"), task("c"), task("d", "b", "c")]
    results = do_all(tasks, bar(4))
    assert order == ["a", "b", "c", "d"]
    assert results["d"] == ["d", ["b", "c"]]


@pytest.mark.parametrize("moved", [0, 2, 3])
def test_a_task_may_move_the_bar_itself(moved: int) -> None:
    bar = tqdm(total=4, file=StringIO())
    do_all([Task("long", lambda _: bar.update(moved) and None, units=3), Task("short", lambda _: None)], bar)
    assert bar.n == 4


POOL = """
def main():
    def work_of(number):
        def work(found):
            assert world_size() == 1 and is_main_process()  # alone with its task
            time.sleep(0.02)
            with open(folder / f"{number}", "x"):  # fails where a task is done twice
                pass
            return [number, sum(value[1] for value in found.values()) + number]
        return work
    tasks = [Task(str(n), work_of(n), tuple(str(m) for m in range(n) if n % (m + 2) == 0)) for n in range(24)]
    results = do_all(tasks, tqdm(total=24, disable=True))
    again = do_all([Task("0", lambda _: "second round")], tqdm(disable=True))
    (folder / f"results-{rank()}").write_text(repr([sorted(results.items()), again]))
    return 0
"""


@pytest.mark.long
def test_several_processes_do_each_task_once_and_know_all_results(tmp_path: Path) -> None:
    found = []
    for count in (1, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        assert in_processes(count, folder, POOL) == (0, "")
        found += [path.read_text() for path in folder.glob("results-*")]
    assert len(found) == 4
    assert len(set(found)) == 1
    assert "second round" in found[0]


DEATH = """
def main():
    def work(_):
        if not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    from_main(torch.zeros(1))  # the two are connected: else gloo may write a line of its own on the death
    do_all([Task(str(n), work) for n in range(4)], tqdm(disable=True))
    return 0
"""


@pytest.mark.long
def test_a_process_that_dies_in_a_task_ends_all_and_the_next_command_does_it(tmp_path: Path) -> None:
    code, error = in_processes(2, tmp_path, DEATH)
    assert code == 1
    assert error.count("\n") == 1
    assert "of 2 was killed by SIGKILL: all end; the same command continues" in error
    assert in_processes(2, tmp_path, DEATH) == (0, "")


DIVIDED = """
def main():
    units = list(range(5))
    sizes = [len(each) for each in blocks(units)]
    mine = torch.tensor([[float(unit), 10.0 * unit] for unit in block(units)]).reshape(-1, 2)
    everything = gathered(mine, sizes)
    network = torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        network.weight += rank()
    network.num_batches_tracked += 7 * (1 - rank())
    network_from_main(network)
    one = from_main(torch.full((2,), float(rank())))
    lines = [everything.tolist(), one.tolist(), network.weight.tolist(), int(network.num_batches_tracked)]
    with alone():
        lines.append([world_size(), list(block(units)), gathered(mine, sizes).shape == mine.shape, shows_progress()])
    lines.append(every_nth(units))
    (folder / f"results-{rank()}").write_text(repr(lines))
    return 0
"""


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 7])  # seven: some have no unit
def test_every_process_gets_the_rows_of_all_in_their_order(count: int, tmp_path: Path) -> None:
    assert in_processes(count, tmp_path, DIVIDED) == (0, "")
    for number in range(count):
        rows, one, weight, tracked, alone, every = eval((tmp_path / f"results-{number}").read_text())
        assert rows == [[float(unit), 10.0 * unit] for unit in range(5)]
        assert (one, weight, tracked) == ([0.0, 0.0], [1.0, 1.0, 1.0], 7)
        assert alone == [1, [0, 1, 2, 3, 4], True, number == 0]
        assert every == list(range(5))[number::count]


def test_one_process_has_all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(6.0).view(3, 2)
    assert gathered(x, [3]) is x
    assert from_main(x) is x
    assert every_nth([1, 2]) == [1, 2]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert block([1, 2, 3]) == [2, 3]
    with ranks.alone():
        assert block([1, 2, 3]) == [1, 2, 3]
    assert [list(each) for each in blocks(range(3), 5)] == [[], [0], [], [1], [2]]
