"""A finished run as a run of an experiment tracker: its settings, the scalars of its steps, its mean accuracies.

`--track trackio`, `wandb` or `mlflow` sends a run when it ends, `bash run.sh report RUN --track wandb` one that ended
earlier. wandb and MLflow keep one run for a run that is sent twice; trackio, which has no ids, keeps two. While a run
works, TensorBoard shows its scalars.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from distill.errors import InputError, one_line
from distill.evaluation.row_files import find_rows
from distill.reports.summary import headings, summary
from distill.runs.own_files import fingerprint_of_folder, read_record
from distill.runs.scalars import METRICS, read_scalars

__all__ = ["Tracker", "check_tracker", "send"]

Tracker = Literal["none", "trackio", "wandb", "mlflow"]
PROJECT = "robust-dataset-distillation"
"""name of the project, or experiment, of all runs"""
Steps = list[tuple[int, dict[str, float]]]
SAME_RUN = "fingerprint"
"""tag of an MLflow run by which it is found again"""


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that is not installed, before the work starts.

    Raises:
        InputError: the tracker's package is missing.
    """
    if tracker != "none" and find_spec(tracker) is None:
        others = ", ".join(name for name in get_args(Tracker) if name not in ("none", tracker) and find_spec(name))
        raise InputError(
            f"--track {tracker}: the package {tracker} is not installed; pip install {tracker}, or leave --track out"
            + (f" (installed here: {others})" if others else "")
        )


def send(folder: Path, tracker: Tracker) -> None:
    """Send a finished run to a tracker, and print that it was sent.

    A failure of the tracker becomes a warning with the command that tries again: the run itself is safe on disk.

    Args:
        folder: of the run.
        tracker: its name; "none" sends nothing.

    Raises:
        InputError: the package is missing, or the run has no results.
    """
    check_tracker(tracker)
    if tracker == "none":
        return
    record, rows = read_record(folder), find_rows([folder])
    means = summary(rows)
    names = headings(mean.column for mean in means)
    accuracies = {names[mean.column]: mean.mean for mean in means}
    settings = dict(_flat((record or {}).get("experiment") or {}))
    first = rows[0]
    name = f"{first.method} {first.dataset} ipc{first.ipc} seed{first.seed}"
    steps = [(int(scalars.pop("step")), scalars) for scalars in read_scalars(folder / METRICS)]
    what = name, fingerprint_of_folder(folder) or "", settings, steps, accuracies
    try:
        if tracker == "mlflow":
            _mlflow(*what)
        elif tracker == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            _like_wandb(wandb, *what)
        else:
            import trackio  # pyright: ignore[reportMissingImports]

            _like_wandb(trackio, *what)
    except Exception as error:  # whatever a tracker raises: no network, no account, a full disk
        again = f"bash run.sh report {folder} --track {tracker}"
        print(f"warning: not sent to {tracker}: {one_line(error, 200)}. To send it later: {again}", file=sys.stderr)
    else:
        print(f"sent to {tracker}, project {PROJECT}", file=sys.stderr)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of nested dictionaries under the names of their flags.

    >>> dict(_flat({"ipc": 1, "evaluation": {"students": 3}}))
    {'ipc': 1, 'evaluation.students': 3}
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _like_wandb(
    module: Any, name: str, fingerprint: str, settings: dict[str, Any], steps: Steps, accuracies: dict[str, float]
) -> None:
    """Send a run to wandb, or to trackio, whose functions have the same names."""
    own = {"id": fingerprint[:16], "resume": "allow"} if module.__name__ == "wandb" else {"resume": "never"}  # no ids
    module.init(project=PROJECT, name=name, config=settings, **own)
    for step, scalars in steps:
        module.log(scalars, step=step)
    module.log({f"accuracy/{column}": value for column, value in accuracies.items()})
    module.finish()


def _mlflow(name: str, fingerprint: str, settings: dict[str, Any], steps: Steps, accuracies: dict[str, float]) -> None:
    """Send a run to the MLflow server, file or database that `MLFLOW_TRACKING_URI` names."""
    import mlflow as module  # pyright: ignore[reportMissingImports]

    module.set_experiment(PROJECT)
    known = module.search_runs(filter_string=f"tags.{SAME_RUN} = '{fingerprint}'", max_results=1, output_format="list")
    with module.start_run(run_id=known[0].info.run_id if known else None, run_name=name, tags={SAME_RUN: fingerprint}):
        module.log_params(settings)
        for step, scalars in steps:
            module.log_metrics(scalars, step=step)
        # MLflow's names of metrics have no characters but these
        named = {"".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key): key for key in accuracies}
        module.log_metrics({f"accuracy/{short}": accuracies[key] for short, key in named.items()})
