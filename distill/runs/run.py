"""One run on disk: its folder, its addressed randomness, its checkpoints, its scalars.

A run folder holds
    experiment.json       what is being run: the whole config, the data, the attacks, and what it ran on
    state.pt              what a resumed run needs; removed when the distilled set is written
    metrics.jsonl         scalars of each step, also as TensorBoard events in tensorboard/
    distilled.safetensors, grid.png, students/, results.jsonl, table.md, table.csv   (see the modules that write them)
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.errors import InputError, one_line
from distill.runs.divergence import diverged, is_finite
from distill.runs.files import Checkpoint, remove_unfinished, write_error, write_tensors, write_text
from distill.runs.foreign import read_text, refuse_irregular
from distill.runs.own_files import json_hash, read_record, read_run_file
from distill.runs.progress import progress
from distill.runs.provenance import provenance
from distill.runs.ranks import is_main_process

__all__ = ["Run", "describe", "locked"]


def describe(value: Any) -> Any:
    """Return a value as JSON has it; a dataclass becomes a dict with its class's name.

    The class of an object from another package, such as a loss, is named `package.module:name`.

    Fields with the metadata {"identity": False} are left out: a run with other values of theirs is the same run.
    """
    if is_dataclass(value) and not isinstance(value, type):
        own = [each.name for each in fields(value) if each.metadata.get("identity", True)]
        return {"class": _class_of(value)} | {name: describe(getattr(value, name)) for name in own}
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _class_of(value: Any) -> str:
    kind = type(value)
    own = kind.__module__.partition(".")[0] in ("robust", "distill", "baselines", "sre2l") or "." not in kind.__module__
    return kind.__name__ if own else f"{kind.__module__}:{kind.__qualname__}"


class Run:
    """A folder that belongs to one experiment, and continues it.

    Args:
        folder: where the run lives; made if needed.
        experiment: the whole config, a dataclass.
        data: the identity of the data that it runs on, of JSON's types; None where a caller does not have the data, and
            then the data of the run in the folder are not compared.
        seed: root of all randomness of the run.
        device: where tensors live.
        checkpoint_seconds: a due checkpoint is this old, at most so much work is lost.
        stages: folder of the parts of runs that other runs can share, see `stage`.
        workers: processes that may decode images ahead of their use; 0 for none but this one.

    Raises:
        InputError: the folder holds another experiment (the difference is named).
    """

    def __init__(
        self,
        folder: Path,
        experiment: Any,
        *,
        data: dict[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        checkpoint_seconds: float = 30.0,
        stages: Path | None = None,
        workers: int = 0,
    ):
        self.folder, self.seed, self.device = folder, seed, torch.device(device)
        self.stages = stages or folder / "stages"
        self.experiment, self.data = describe(experiment), data
        self.checkpoint_seconds, self.workers = checkpoint_seconds, workers
        self._checkpoint = Checkpoint(folder / "state.pt", checkpoint_seconds, writes=is_main_process())
        self._scalars = None
        self._check()

    def begin(self, **beside: Any) -> "Run":
        """Make the folder this experiment's; until then nothing is written, so that bad input leaves nothing behind.

        Args:
            beside: of JSON's types, written beside the experiment; the run stays the same when they change.

        Returns:
            the run itself.

        Raises:
            InputError: the folder cannot be written.
        """
        path = self.folder / "experiment.json"
        content = {"experiment": self.experiment, "data": self.data} | beside
        found = read_record(self.folder)
        if is_main_process() and (found is None or found | content != found):
            write_text(path, json.dumps(content | {"made_by": provenance(self.device, content)}, indent=2) + "\n")
        return self

    def generator(self, *address: str | int) -> torch.Generator:
        """Return the CPU generator of an address, the same for every call: a resumed run needs no random state.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder), None)
        ...     draw = lambda *address: torch.rand((), generator=run.generator(*address)).item()
        ...     draw("batch", 3) == draw("batch", 3) != draw("batch", 4)
        True
        """
        digest = hashlib.sha256(repr((self.seed, *address)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def stage(self, name: str, config: Any, seed: int | None = None) -> "Run":
        """Return the run of a part that other runs can share: its folder is named by its config and the seed.

        Args:
            name: of the part.
            config: all that its outcome depends on besides the seed, a dataclass or what JSON has.
            seed: root of its randomness; None for this run's, a number for a part that runs of all seeds share.

        Returns:
            the run, begun; it works on this one's device.
        """
        seed = self.seed if seed is None else seed
        config = {"stage": name, "seed": seed, "config": describe(config)}
        folder = self.stages / f"{name}-{json_hash(config)[:12]}"
        options = {"seed": seed, "device": self.device, "checkpoint_seconds": self.checkpoint_seconds}
        return Run(folder, config, **options, stages=self.stages, workers=self.workers).begin()

    def config_hash(self, **instead: Any) -> str:
        """Return eight hex digits that runs share which differ in nothing but the seed, or in fields that are replaced.

        Args:
            instead: fields of the experiment with the value to take instead.
        """
        experiment = self.experiment
        if isinstance(experiment, dict):
            experiment = {name: value for name, value in experiment.items() if name != "seed"} | instead
        return json_hash([experiment, self.data])[:8]

    # --- its files -----------------------------------------------------------------------------------------------

    def fingerprint(self, **instead: Any) -> str:
        """Return the hash by which the run's files are told from those of another: of its experiment and its data.

        Args:
            instead: fields of the experiment with the value to take instead.
        """
        experiment = self.experiment | instead if isinstance(self.experiment, dict) else self.experiment
        return json_hash([experiment, self.data])

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """Write tensors to a file of the run, which then says whose it is; the arguments are those of `kept`."""
        write_tensors(self.folder / name, tensors, dict(facts or {}) | {"run": self.fingerprint()})

    def read_tensors(self, name: str, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the facts of a file of the run, None where it is not there.

        Args:
            name: of the file, below the run's folder.
            tensors: whether to read them; without, only its head is looked at.

        Raises:
            InputError: it is damaged, or of another run.
        """
        path = self.folder / name
        return read_run_file(path, self.fingerprint(), tensors=tensors) if path.exists() else None

    def has_tensors(self, name: str) -> bool:
        """Return whether a file of tensors of the run is there; it is not read.

        Raises:
            InputError: it is damaged, or of another run.
        """
        return self.read_tensors(name, tensors=False) is not None

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def restore(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None; scalars logged after it are forgotten.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another experiment.
        """
        state = self._checkpoint.restore()
        if state is None:
            self._forget(0)
            return None
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint():
            path = self._checkpoint.path
            raise InputError(f"checkpoint {path} belongs to another experiment; delete it to start this run anew")
        self._forget(state["step"])
        return state["state"]

    def due(self) -> bool:
        """Tell whether the last checkpoint is old enough for another."""
        return self._checkpoint.due()

    def save(self, step: int, state: dict[str, Any], remedy: str = "learning rate") -> None:
        """Write a checkpoint atomically.

        Args:
            step: steps done; scalars of this step and later are logged again after a restore.
            state: tensors and numbers.
            remedy: the flags to make smaller where the state is not finite.

        Raises:
            InputError: it has a number that is not finite, from which no run can continue, or cannot be written.
        """
        if not is_finite(state):
            raise diverged("the work", step - 1, "its state is not finite", remedy, "step")
        self._checkpoint.save({"fingerprint": self.fingerprint(), "step": step, "state": state})

    def finish(self) -> None:
        """Remove the checkpoint: what it led to is written."""
        if self._scalars is not None:
            with self._writing("tensorboard"):
                self._scalars.close()
        self._checkpoint.remove()

    # --- scalars and progress ------------------------------------------------------------------------------------

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """Append the scalars of a step to metrics.jsonl and to the TensorBoard events.

        Raises:
            InputError: they cannot be written.
        """
        if not is_main_process():
            return
        numbers = {name: float(value) for name, value in scalars.items()}
        with self._writing("metrics.jsonl"), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | numbers) + "\n")
        with self._writing("tensorboard"):
            if self._scalars is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

                self._scalars = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
            for name, value in numbers.items():
                self._scalars.add_scalar(name, value, step)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.folder / name, error) from None

    def notify(self, line: str) -> None:
        """Tell the user something that no error is, on standard error."""
        if is_main_process():
            tqdm.write(one_line(line), file=sys.stderr)

    def progress(self, description: str, total: int, done: int = 0, unit: str = "it") -> tqdm:
        """Return a progress bar for a `with` block."""
        return progress(description, total, done, unit)

    def _forget(self, step: int) -> None:
        """Take the scalars of a step and later out of metrics.jsonl, and lines that are none: one was cut short."""
        path = self.folder / "metrics.jsonl"
        if not is_main_process() or not path.exists():
            return
        try:
            lines = read_text(path).splitlines(keepends=True)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); delete it: it has scalars alone") from None
        write_text(path, "".join(line for line in lines if line.endswith("\n") and -1 < _step_of(line) < step))

    # --- whose folder this is ------------------------------------------------------------------------------------

    def _check(self) -> None:
        found = read_record(self.folder)
        if found is None:
            return
        same = found["experiment"] == self.experiment
        if (same and self.data in (None, found["data"])) or self._is_empty():
            return
        if self.data is not None and found["data"] is None:
            raise InputError(
                f"{self.folder} holds a run of an earlier version, which did not record its data: move it away, "
                "or choose another folder (--runs DIR)"
            )
        part, what, how = ("data", "other data", "--data-dir") if same else ("experiment", "another config", "flags")
        raise InputError(
            f"{self.folder} holds a run with {what}: {difference(found[part], getattr(self, part))}. "
            f"Give the same {how} to continue it, or another folder (--runs DIR) for this one"
        )

    def _is_empty(self) -> bool:
        """Tell whether the run that has the folder ended before it had anything to continue from: refused, diverged."""
        if {path.name for path in self.folder.iterdir()} - {"experiment.json", ".lock", "metrics.jsonl", "tensorboard"}:
            return False
        try:
            with locked(self.folder):
                return True
        except InputError:  # it is just beginning
            return False


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; -1 where it is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return -1


def difference(found: Any, asked: Any, path: str = "") -> str:
    """Return where two descriptions differ, as "field is A there, B now; ...".

    >>> difference({"ipc": 1, "config": {"lr": 0.1}}, {"ipc": 1, "config": {"lr": 0.2}})
    'config.lr is 0.1 there, 0.2 now'
    """
    if isinstance(found, dict) and isinstance(asked, dict):
        names = [*found, *(name for name in asked if name not in found)]
        parts = (
            difference(found.get(name), asked.get(name), f"{path}.{name}".strip("."))
            for name in names
            if found.get(name) != asked.get(name)
        )
        return "; ".join(parts)
    return f"{path or 'it'} is {found} there, {asked} now"


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of an existing folder during the block; a killed process lets go of it.

    Args:
        folder: of a run, or of a part that runs share.
        wait: whether to wait for another process that has it, and say so; for parts, which are there then.

    Raises:
        InputError: another process has it, and there is no waiting.
    """
    if not is_main_process():  # the first of a run's processes has it for all
        yield
        return
    try:
        if (folder / ".lock").exists():
            refuse_irregular(folder / ".lock")
        file = open(folder / ".lock", "ab")  # noqa: SIM115  # closed below
    except OSError as error:
        raise write_error(folder / ".lock", error) from None
    with file:
        try:
            import fcntl  # not on Windows, where two processes in one folder are not noticed

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if not wait:
                    line = f"another process works in {folder}; wait for it, or choose another folder (--runs DIR)"
                    raise InputError(line) from None
                print(f"another process works in {folder}, which this run needs too: waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            for place in (folder, *filter(Path.is_dir, folder.iterdir())):
                remove_unfinished(place)
        except ImportError:
            pass
        yield
