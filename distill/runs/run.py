"""One run on disk: its folder, its addressed randomness, its checkpoints, its files.

A run folder holds
    experiment.json       what is being run: the whole config, the data, the attacks, and what it ran on
    state.pt              what a resumed run needs; removed when the distilled set is written
    metrics.jsonl         scalars of each step, also as TensorBoard events in tensorboard/
    distilled.safetensors, grid.png, students/, results.jsonl, table.md, table.csv   (see the modules that write them)
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.errors import InputError, one_line
from distill.runs.description import describe, difference
from distill.runs.divergence import diverged, is_finite
from distill.runs.files import Checkpoint, write_tensors, write_text
from distill.runs.locks import LOCK, locked
from distill.runs.own_files import json_hash, read_record, read_run_file
from distill.runs.progress import progress
from distill.runs.provenance import provenance
from distill.runs.ranks import is_main_process, shows_progress
from distill.runs.scalars import EVENTS, METRICS, Scalars
from distill.runs.version import RECORD_FORMAT

__all__ = ["Run"]


class Run:
    """A folder that belongs to one experiment, and continues it.

    Args:
        folder: where the run lives; made if needed.
        experiment: the whole config, a dataclass.
        data: the identity of the data that the run uses, of JSON's types; None where a caller does not have the data.
            Then the data of the run in the folder are not compared.
        seed: root of all randomness of the run.
        device: where tensors live.
        checkpoint_seconds: age of the last checkpoint at which the next is due; a killed run loses this much work.
        stages: folder of the stages that runs can share, see `stage`.
        workers: processes that may decode images ahead of their use; 0 for none but this one.

    Raises:
        InputError: the folder holds another experiment (the message names the difference).
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
        self._checkpoint = Checkpoint(folder / "state.pt", checkpoint_seconds, main_only=True)
        self._scalars = Scalars(folder)
        self._check()

    def begin(self, **beside: Any) -> "Run":
        """Make the folder this experiment's; before that nothing is written, so that bad input leaves nothing behind.

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
            content = {"format": RECORD_FORMAT} | content | {"made_by": provenance(self.device, content)}
            write_text(path, json.dumps(content, indent=2) + "\n")
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
        """Return the run of a stage that other runs can share: its folder is named by its config and the seed.

        Args:
            name: of the stage.
            config: everything besides the seed that the outcome depends on, a dataclass or of JSON's types.
            seed: root of the stage's randomness; None for this run's seed, a number for a stage that runs of all seeds
                share.

        Returns:
            the run, begun, on the device of this run.
        """
        seed = self.seed if seed is None else seed
        config = {"stage": name, "seed": seed, "config": describe(config)}
        stage = Run(
            self.stages / f"{name}-{json_hash(config)[:12]}",
            config,
            seed=seed,
            device=self.device,
            checkpoint_seconds=self.checkpoint_seconds,
            stages=self.stages,
            workers=self.workers,
        )
        return stage.begin()

    def of_task(self, name: str) -> "Run":
        """Return the run of one of this run's tasks (`distill.runs.tasks`), in a folder of its own below this run's.

        The process that does the task writes the checkpoint and the scalars.

        Args:
            name: of the task, and of the folder.
        """
        run = Run(
            self.folder / name,
            {"task": name, "of": self.experiment},
            data=self.data,
            seed=self.seed,
            device=self.device,
            checkpoint_seconds=self.checkpoint_seconds,
            stages=self.stages,
            workers=self.workers,
        )
        run._scalars = Scalars(run.folder, main_only=False)
        return run

    def config_hash(self, **instead: Any) -> str:
        """Return eight hex digits that runs share which differ only in the seed or in replaced fields.

        Args:
            instead: fields of the experiment, with the value that replaces theirs.
        """
        experiment = self.experiment
        if isinstance(experiment, dict):
            experiment = {name: value for name, value in experiment.items() if name != "seed"} | instead
        return json_hash([experiment, self.data])[:8]

    # --- its files -----------------------------------------------------------------------------------------------

    def fingerprint(self, **instead: Any) -> str:
        """Return the hash of the experiment and the data, which the run's files carry.

        Args:
            instead: fields of the experiment, with the value that replaces theirs.
        """
        experiment = self.experiment | instead if isinstance(self.experiment, dict) else self.experiment
        return json_hash([experiment, self.data])

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """Write tensors to a file of the run, with the run's fingerprint in it.

        Args:
            name: of the file, below the run's folder.
            tensors: by name.
            facts: of JSON's types, written beside them.
        """
        write_tensors(self.folder / name, tensors, dict(facts or {}) | {"run": self.fingerprint()})

    def read_tensors(self, name: str, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the facts of a file of the run, None where there is no such file.

        Args:
            name: of the file, below the run's folder.
            tensors: whether to read them; without, only the head of the file is read.

        Raises:
            InputError: the file is damaged, or of another run.
        """
        path = self.folder / name
        return read_run_file(path, self.fingerprint(), tensors=tensors) if path.exists() else None

    def has_tensors(self, name: str) -> bool:
        """Return whether a file of tensors of the run exists; only its head is read.

        Raises:
            InputError: the file is damaged, or of another run.
        """
        return self.read_tensors(name, tensors=False) is not None

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def restore(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None; scalars of later steps are removed.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another experiment.
        """
        state = self._checkpoint.restore()
        if state is None:
            self._scalars.forget(0)
            return None
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint():
            path = self._checkpoint.path
            raise InputError(f"checkpoint {path} belongs to another experiment; delete it to start this run anew")
        self._scalars.forget(state["step"])
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
            InputError: the state has a number that is not finite, from which no run can continue, or cannot be
                written.
        """
        if not is_finite(state):
            raise diverged("the work", step - 1, "its state is not finite", remedy, "step")
        self._checkpoint.save({"fingerprint": self.fingerprint(), "step": step, "state": state})

    def finish(self) -> None:
        """Remove the checkpoint, once its result is written."""
        self._scalars.close()
        self._checkpoint.remove()

    # --- scalars, messages and progress --------------------------------------------------------------------------

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """Append the scalars of a step to metrics.jsonl and to the TensorBoard events.

        Raises:
            InputError: they cannot be written.
        """
        self._scalars.log(step, **scalars)

    def notify(self, line: str) -> None:
        """Print a message that is no error, on standard error, once for all processes."""
        if shows_progress():
            tqdm.write(one_line(line), file=sys.stderr)

    def progress(self, description: str, total: int, done: int = 0, unit: str = "it") -> tqdm:
        """Return a progress bar for a `with` block."""
        return progress(description, total, done, unit)

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
        """Return whether the run in the folder ended (refused, diverged) before it had anything to continue from."""
        if {path.name for path in self.folder.iterdir()} - {"experiment.json", LOCK, METRICS, EVENTS}:
            return False
        try:
            with locked(self.folder):
                return True
        except InputError:  # that run is just beginning
            return False
