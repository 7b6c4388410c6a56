"""`bash run.sh rerun RUN`: repeat a run from its experiment.json alone, in a new folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from distill.app.distil import run_experiment
from distill.app.evaluate import Judgement, folder_of, run_judgements
from distill.app.flags import HELP, parse
from distill.app.registry import check_packages, method_named, protocols_of
from distill.app.start import RunOptions
from distill.data import check_dataset, facts_named, label
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError, one_line
from distill.experiment import Evaluation, Experiment
from distill.methods.method import Method
from distill.runs.foreign import reachable
from distill.runs.from_json import Known, MismatchError, from_json, types_of
from distill.runs.own_files import read_record
from distill.runs.version import project_version
from robust import LOSSES, Threat
from robust.ranges import Whole, check_ranges

__all__ = ["RerunCommand", "loss_classes", "run_rerun"]


@dataclass(frozen=True)
class RerunCommand:
    """Repeat a run of a method, or of `evaluate`, from its experiment.json."""

    run: tyro.conf.Positional[Path]
    """folder of the run; nothing is written there"""
    seed: Whole | None = None
    """another seed; None: the seed of the run, which gives bit-identical results on a machine of the same kind"""
    distilled: Path | None = None
    """for a run of `evaluate`: the distilled set, or its folder; None: the path that the run recorded"""
    packages: str = ""
    """other packages that may be imported if the run names one of their objects, separated by commas"""
    place: Annotated[RunOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: replace(RunOptions(), runs=Path("reruns"))
    )
    """folders of the data and of the new run, and how data are read"""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_rerun(flags: list[str], methods: Mapping[str, Method]) -> int:
    """Repeat a run.

    Args:
        flags: the command-line words after `rerun`.
        methods: all methods, by name.

    Returns:
        the exit code.

    Raises:
        InputError: the folder has no experiment.json, or an experiment.json of an incompatible version; the data or the
            distilled set differ from those of the run; the new run would overwrite the old run; the run has objects of
            another package that no flag names (--packages).
    """
    if not flags or (flags[0].startswith("-") and flags[0] not in HELP):
        raise InputError("rerun takes the folder of a run first: bash run.sh rerun runs/METHOD/DATASET/ipcN/seedS")
    default = RerunCommand(tyro.MISSING)
    request = parse(RerunCommand, default, flags, "bash run.sh rerun")
    folder = reachable(request.run)
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder} has no experiment.json: give the folder of a run")
    description = record.get("experiment") or {}
    kind = description.get("class")
    if kind not in ("Experiment", "Judgement"):
        content = f"the stage {description['stage']}, shared by runs" if "stage" in description else "no run"
        raise InputError(f"{folder} contains {one_line(content, 80)}; give the folder of a run of a method or evaluate")
    named = json.dumps([description, record.get("attacks")])
    check_packages(folder, [named], [*flags, *request.packages.split(",")])
    try:
        description |= {"evaluation": _with_columns(description.get("evaluation"), record)}
        if kind == "Experiment":
            return _rerun_method(request, folder, description, record["data"], ["rerun", *flags], methods)
        return _rerun_evaluate(request, folder, description, record, ["rerun", *flags], methods)
    except MismatchError as error:
        raise InputError(
            f"{folder} was made by {_version_of(record)} and cannot be repeated by version {project_version()}: {error}"
        ) from None


def _rerun_method(
    request: RerunCommand,
    folder: Path,
    description: dict[str, Any],
    data: dict[str, Any] | None,
    words: list[str],
    methods: Mapping[str, Method],
) -> int:
    """Repeat a run of a method."""
    name, dataset, recipe = (str(description.get(field)) for field in ("method", "dataset", "recipe"))
    method = method_named(name, methods)
    if method is None:
        raise MismatchError(f"method is {one_line(name, 60)}, which is unknown")
    _check_dataset(dataset)
    if recipe not in method.recipes:
        raise MismatchError(f"recipe is {one_line(recipe, 60)}, which {name} does not have")
    types = types_of(method.recipes[recipe](facts_named(dataset), 1).config, "config")
    experiment = from_json(Experiment, description, known=Known(types, loss_classes()))
    if request.seed is not None:
        experiment = replace(experiment, seed=request.seed)
    _check_other(folder, request.place.runs / experiment.folder(request.place.data_dir))
    return run_experiment(method, experiment, request.place, words, recorded=data)


def _rerun_evaluate(
    request: RerunCommand,
    folder: Path,
    description: dict[str, Any],
    record: dict[str, Any],
    words: list[str],
    methods: Mapping[str, Method],
) -> int:
    """Repeat a run of `evaluate` on the same distilled set."""
    judgement = from_json(Judgement, description)
    _check_dataset(judgement.dataset)
    if request.distilled is None and not isinstance(record.get("set"), str):
        raise MismatchError("set is missing, the path of the distilled set; give it (--distilled PATH)")
    path = reachable(request.distilled or Path(record["set"]))
    file = path / "distilled.safetensors" if path.is_dir() else path
    if not file.exists() or digest_of(file) != judgement.distilled:
        state = "is not the set" if file.exists() else "is missing, the set"
        raise InputError(f"{file} {state} that {folder} evaluated; give the path of that set (--distilled PATH)")
    if request.seed is not None:
        judgement = replace(judgement, seed=request.seed)
    distilled = DistilledSet.load(file)
    other = "" if judgement.backbone == distilled.backbone else judgement.backbone
    names = (distilled.method or path.stem, judgement.distilled, label(judgement.dataset, request.place.data_dir))
    _check_other(folder, request.place.runs / folder_of(*names, judgement.seed, other))
    return run_judgements(path, [judgement], request.place, protocols_of(methods), words, record["data"])


def _check_dataset(name: str) -> None:
    try:
        check_dataset(name)
    except InputError as error:
        raise MismatchError(f"dataset is {one_line(name, 60)}: {error}") from None


def loss_classes() -> dict[str, type]:
    """Return class name -> class for the losses of LOSSES."""
    kinds = (type(make(Threat("linf", 8 / 255))) for make in LOSSES.values())
    return {kind.__name__: kind for kind in kinds}


def _with_columns(evaluation: Any, record: dict[str, Any]) -> Any:
    """Return the description of an evaluation, completed by the fields that experiment.json stores separately."""
    if not isinstance(evaluation, dict):
        return evaluation
    return evaluation | {name: record[name] for name in Evaluation().columns if name in record}


def _check_other(folder: Path, target: Path) -> None:
    """Refuse to write the new run into the folder of the repeated run."""
    if target.resolve() == folder.resolve():
        raise InputError(f"the new run would overwrite {folder}; give another folder of runs (--runs DIR)")


def _version_of(record: dict[str, Any]) -> str:
    """Return the version that wrote a record, as text for a message."""
    found = record.get("made_by")
    made_by: dict[str, Any] = found if isinstance(found, dict) else {}
    if "version" in made_by:
        return f"version {one_line(made_by['version'], 40)}"
    return f"an earlier version (commit {one_line(made_by.get('commit') or 'unknown', 40)})"
