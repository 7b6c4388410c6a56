"""Independent pieces of work that a pool of processes takes, each process the next one that can begin.

The pool is all processes of the run. A task is done once, by one process, as if that process were the only one. Each
task writes what it makes to files of the run, so that a killed task is taken up where its files end when the command
is repeated. A process that dies ends the command (`distill.runs.launch`).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from tqdm import tqdm

from distill.runs.ranks import alone, barrier, store, world_size

__all__ = ["Task", "do_all"]

_rounds = count()
_SHORTEST, _LONGEST = 0.01, 0.05
"""seconds between two looks at what other processes have done"""


@dataclass(frozen=True)
class Task:
    """One piece of work."""

    name: str
    """unique among the tasks"""
    work: Callable[[Mapping[str, Any]], Any]
    """takes the results of the tasks that this one needs, by name; returns a result of JSON's types. A long task may
    move the progress bar itself, by at most its units"""
    needs: tuple[str, ...] = ()
    """names of tasks that come earlier in the list, and are done before this one begins"""
    units: int = 1
    """of the progress bar"""
    title: str = ""
    """shown beside the bar; empty for none"""


def do_all(tasks: Sequence[Task], bar: tqdm) -> dict[str, Any]:
    """Do all tasks; every process of the run calls this with the same tasks.

    Args:
        tasks: each after those that it needs; a process begins with the first that it can.
        bar: a progress bar over the sum of all units.

    Returns:
        the results of all tasks, by name, in every process.
    """
    results: dict[str, Any] = {}
    pool = _Pool(f"tasks-{next(_rounds)}") if world_size() > 1 else None
    units = {task.name: task.units for task in tasks}
    waiting, pause = list(tasks), _SHORTEST
    while len(results) < len(tasks):
        if pool is not None:
            for name, result in pool.news():
                results[name] = result
                bar.update(units[name])
        ready = (task for task in waiting if all(name in results for name in task.needs))
        task = next((task for task in ready if pool is None or pool.takes(task.name)), None)
        waiting = [each for each in waiting if each is not task and (pool is None or each.name not in pool.taken)]
        if task is None:
            time.sleep(pause)
            pause = min(_LONGEST, 1.5 * pause)
            continue
        pause = _SHORTEST
        if task.title:
            bar.set_postfix_str(task.title, refresh=True)
        before = bar.n
        with alone():
            result = json.loads(json.dumps(task.work({name: results[name] for name in task.needs})))
        units[task.name] -= int(bar.n - before)
        if pool is not None:
            pool.tell(task.name, result)  # `news` returns it
        else:
            results[task.name] = result
            bar.update(units[task.name])
    barrier()
    return results


class _Pool:
    """What the processes tell each other about the tasks, in the store of the run.

    Args:
        name: of this round of tasks.
    """

    def __init__(self, name: str):
        self.name, self.taken = name, set[str]()
        self._heard = 0

    def takes(self, task: str) -> bool:
        """Return whether this process has a task for itself: it is the first that wants it."""
        if task in self.taken:
            return False
        self.taken.add(task)
        return store().add(f"{self.name}/taken/{task}", 1) == 1

    def tell(self, task: str, result: Any) -> None:
        """Tell all processes that a task is done."""
        number = store().add(f"{self.name}/done", 1)
        store().set(f"{self.name}/done/{number}", json.dumps([task, result]))

    def news(self) -> list[tuple[str, Any]]:
        """Return the tasks that were done since the last call, in the same order in every process, with results."""
        found = []
        while store().check([f"{self.name}/done/{self._heard + 1}"]):
            self._heard += 1
            found.append(tuple(json.loads(store().get(f"{self.name}/done/{self._heard}"))))
        return found
