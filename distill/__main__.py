"""The command line, and the composition root: the only file that looks into all packages, and that nobody imports."""

import hashlib
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
import tyro

from distill.augment import STRATEGIES
from distill.data import DATASETS, ImageSet, load
from distill.distilled import DistilledSet
from distill.errors import InputError, unknown
from distill.estimate import estimate, human
from distill.evaluate import attacks_for, check, evaluate
from distill.experiment import Evaluation, Experiment, Recipe
from distill.files import write_text
from distill.flags import find_device, parse, peek, whole_number
from distill.models import BACKBONES, build
from distill.report import FORMATS, find_rows, render, save_grid
from distill.run import Run, locked
from robust import losses

PACKAGES = ("distill.methods",)
"""Where methods live; their folders are the registry."""

USAGE = """\
Robust dataset distillation: make a few images per class on which networks train well and withstand attacks.

  bash run.sh METHOD DATASET [--flags]  distil, train students on the result, attack them, print and save the table
  bash run.sh guard_dc digits           a first run: real data that needs no download, minutes on a laptop
  bash run.sh evaluate PATH [--flags]   students and attacks for a distilled set: its file, or the folder of its run
  bash run.sh table [RUNS ...]          all finished runs as one table: --format {formats}
  bash run.sh list                      methods, data sets, backbones, attacks, losses, recipes
  bash run.sh test                      the test suite
  bash run.sh bench [NAME ...]          how fast it is, as ratios against the textbook form

  METHOD   {methods}
  DATASET  {datasets}

`bash run.sh METHOD DATASET --help` shows every flag with its default. The same command again continues an interrupted
run, and prints the table of a finished one. Exit codes: 0 done, 1 a fault of ours, 2 bad input or
missing data, 130 interrupted.
"""


@dataclass(frozen=True)
class Place:
    """Where things are; no result depends on it."""

    data_dir: Path = Path(os.environ.get("DATA_DIR", "data"))
    """folder of the real data sets (environment: DATA_DIR); for `folder` the one that holds train/ and val/"""
    runs: Path = Path("runs")
    """folder of all runs"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, ...; auto takes a GPU where there is one"""
    checkpoint_seconds: float = 30.0
    """how often the state of a distillation is saved: what a killed run loses at most"""


@dataclass(frozen=True)
class MethodCommand:
    """Everything that `bash run.sh METHOD DATASET` takes."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Judgement:
    """What `bash run.sh evaluate PATH` computes; a run's config."""

    distilled: Annotated[str, tyro.conf.Suppress]
    """sha256 of the distilled set's file"""
    dataset: str
    """real data set to judge on"""
    backbone: str
    """network of the students"""
    evaluation: Annotated[Evaluation, tyro.conf.arg(name="")]
    """students and attacks"""
    recipe: Literal["paper", "quick"]
    """how many students and test images: 50 and all, or 3 and 2,000"""
    seed: int = 0
    """root of the randomness of students and attacks"""


@dataclass(frozen=True)
class EvaluateCommand:
    """Everything that `bash run.sh evaluate PATH` takes."""

    judgement: Annotated[Judgement, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class TableCommand:
    """Print every finished run as one table."""

    places: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders of runs"""
    format: Literal["text", "markdown", "csv", "latex"] = "text"
    """csv has a line per seed and attack, the others put seeds together"""


def main(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(arguments)
    except InputError as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a table went away
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("\nrun.sh: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def command(arguments: list[str]) -> int:
    """Find the command and run it; return the exit code.

    Returns:
        0 where it was done.

    Raises:
        InputError: an unknown one.
    """
    methods = find_methods()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(
            USAGE.format(methods=", ".join(methods), datasets=", ".join(DATASETS), formats=", ".join(FORMATS)), end=""
        )
        return 0
    word, rest = arguments[0], arguments[1:]
    others = {"evaluate": run_evaluate, "table": run_table, "list": run_list}
    if word in others:
        return others[word](rest)
    if word not in methods:
        raise unknown("method", word, [*methods, *others, "test", "bench"])
    if not rest or rest[0] in ("-h", "--help"):
        print(f"usage: bash run.sh {word} DATASET [--flags]; DATASET is one of {', '.join(DATASETS)}")
        return 0 if rest else 2
    if rest[0] not in DATASETS:
        raise unknown("data set", rest[0], DATASETS)
    return run_method(word, rest[0], methods[word], rest[1:])


def find_methods() -> dict[str, ModuleType]:
    """Return the methods found in PACKAGES, by name."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            found |= dict.fromkeys(getattr(module, "RECIPES", {}), module)
    return found


# --- bash run.sh METHOD DATASET ------------------------------------------------------------------------------------


def run_method(method: str, dataset: str, module: ModuleType, flags: list[str]) -> int:
    """Distil, judge, report."""
    early = peek(flags, "--ipc", "--recipe", "--device")
    recipes = module.RECIPES[method]
    device = find_device(early["--device"] or "auto")
    name = early["--recipe"] or ("quick" if device.type == "cpu" else "paper")
    if name not in recipes:
        raise unknown("recipe", name, recipes)
    ipc = whole_number("--ipc", early["--ipc"] or "1", least=1)
    recipe = recipes[name](dataset, ipc)
    experiment = Experiment(method, dataset, recipe.config, recipe.evaluation, name, ipc)
    default = MethodCommand(experiment, Place())
    asked = parse(MethodCommand, default, flags, f"bash run.sh {method} {dataset}")
    experiment, place = asked.experiment, asked.place

    folder, seconds = place.runs / experiment.folder, place.checkpoint_seconds
    run = Run(folder, experiment, seed=experiment.seed, device=device, checkpoint_seconds=seconds)
    if (run.folder / "table.csv").exists():
        print(f"finished already in {run.folder}", file=sys.stderr)
        return show(run.folder)
    train, test = real_data(experiment, place.data_dir, device)
    spare_threads(train, device)
    smallest = int(train.labels.bincount(minlength=train.num_classes).min())
    if experiment.ipc > smallest:
        raise InputError(f"ipc is {experiment.ipc}; the smallest class of {train.name} has {smallest} images")
    backbone = experiment.config.backbone
    foresee(backbone, experiment.evaluation, train)
    announce(early["--recipe"] is None, experiment, recipes, module, train, len(test), device)

    labels = {"method": method, "dataset": experiment.data_name, "ipc": experiment.ipc, "seed": experiment.seed}
    labels |= {"backbone": backbone, "recipe": experiment.recipe, "config": run.config_hash}
    with locked(run.begin().folder):
        path = run.folder / "distilled.safetensors"
        if not path.exists():
            distilled = module.distill(train, experiment.ipc, experiment.config, run)
            replace(distilled, method=method).save(path)
        distilled = DistilledSet.load(path)
        run.finish()
        save_grid(distilled, run.folder / "grid.png")
        return report(evaluate(distilled, test, experiment.evaluation, backbone, run, labels), run.folder)


def real_data(experiment: Experiment, root: Path, device: torch.device) -> tuple[ImageSet, ImageSet]:
    """Return what is distilled and what is judged on, on the device."""
    train, test = load(experiment.dataset, root, experiment.image_size)
    if experiment.split == "validation":
        # One split for all seeds, so that what is chosen on it is chosen on the same images.
        train, test = train.split(0.1, torch.Generator().manual_seed(0))
    return train.to(device), test.to(device)


def foresee(backbone: str, evaluation: Evaluation, images: ImageSet) -> None:
    """Refuse an impossible network or attack before hours of work, and before anything is written."""
    channels, size, _ = images.image_shape
    shape = {"channels": channels, "image_size": size, "num_classes": images.num_classes}
    build(backbone, **shape, generator=torch.Generator())
    attacks_for(evaluation.attack_names, channels)


def spare_threads(images: ImageSet, device: torch.device) -> None:
    """Take one thread on a CPU for small images, whose layers cost less than sharing them out does."""
    if device.type == "cpu" and images.image_shape[1] <= 16 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def announce(
    chosen_here: bool,
    experiment: Experiment,
    recipes: dict[str, Callable[[str, int], Recipe]],
    module: ModuleType,
    train: ImageSet,
    tests: int,
    device: torch.device,
) -> None:
    """Say which recipe runs, and on a CPU how long it and the other will take."""
    text = f"{experiment.method} on {experiment.data_name}, ipc {experiment.ipc}, recipe {experiment.recipe}"
    if device.type != "cpu":
        print(f"{text}, on {device}", file=sys.stderr)
        return

    def hours(recipe: Recipe) -> str:
        return human(estimate(recipe, module.work, experiment.ipc, train.image_shape, train.num_classes, tests))

    this = hours(Recipe(experiment.config, experiment.evaluation))
    if chosen_here:
        paper = hours(recipes["paper"](experiment.dataset, experiment.ipc))
        text = f"No GPU here: {text} (about {this}); --recipe paper would take about {paper}"
    else:
        text = f"{text}: about {this} on this CPU"
    print(text, file=sys.stderr)


def report(rows: list[dict[str, Any]], folder: Path) -> int:
    """Write the tables of a run; table.csv is the last file, and says that the run is finished."""
    write_text(folder / "table.md", render(rows, "markdown"))
    write_text(folder / "table.csv", render(rows, "csv"))
    return show(folder)


def show(folder: Path) -> int:
    """Print the table of a finished run."""
    print(render(find_rows([folder]), "text"), end="")
    print("accuracy in percent, mean ± standard deviation over n students; attacks: see `bash run.sh list`")
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


# --- the other commands ----------------------------------------------------------------------------------------------


def run_evaluate(flags: list[str]) -> int:
    """Judge a distilled set that exists.

    Returns:
        the exit code.

    Raises:
        InputError: no path is given.
    """
    if not flags or (flags[0].startswith("-") and flags[0] not in ("-h", "--help")):
        raise InputError("evaluate takes a path first: distilled.safetensors, or the folder of its run")
    helping = flags[0] in ("-h", "--help")
    path = Path("PATH" if helping else flags[0])
    distilled = None if helping else DistilledSet.load(path)
    early = peek(flags, "--recipe", "--device")
    device = find_device(early["--device"] or "auto")
    recipe = early["--recipe"] or ("quick" if device.type == "cpu" else "paper")
    evaluation = Evaluation(3, test_images=2000) if recipe == "quick" else Evaluation(50)
    file = path / "distilled.safetensors" if path.is_dir() else path
    digest = "" if distilled is None else hashlib.sha256(file.read_bytes()).hexdigest()
    dataset, backbone = ("cifar10", "convnet") if distilled is None else (distilled.dataset, distilled.backbone)
    judgement = Judgement(digest, dataset, backbone, evaluation, recipe)
    default = EvaluateCommand(judgement, Place())
    asked = parse(EvaluateCommand, default, flags if helping else flags[1:], "bash run.sh evaluate PATH")
    judgement, place = asked.judgement, asked.place
    if judgement.dataset not in DATASETS:
        raise unknown("data set", judgement.dataset, DATASETS)

    name = distilled.method or path.stem
    folder = place.runs / "evaluate" / judgement.dataset / f"{name}-{digest[:12]}" / f"seed{judgement.seed}"
    run = Run(folder, judgement, seed=judgement.seed, device=device)
    if (folder / "table.csv").exists():
        print(f"finished already in {folder}", file=sys.stderr)
        return show(folder)
    _, test = load(judgement.dataset, place.data_dir, distilled.images.shape[-1])
    check(distilled, test)
    foresee(judgement.backbone, judgement.evaluation, test)
    spare_threads(test, device)
    labels = {"method": name, "dataset": judgement.dataset, "ipc": round(distilled.ipc), "seed": judgement.seed}
    labels |= {"backbone": judgement.backbone, "recipe": judgement.recipe, "config": run.config_hash}
    with locked(run.begin().folder):
        evaluation, backbone = judgement.evaluation, judgement.backbone
        return report(evaluate(distilled, test.to(device), evaluation, backbone, run, labels), folder)


def run_table(flags: list[str]) -> int:
    """Print all finished runs."""
    asked = parse(TableCommand, TableCommand(), flags, "bash run.sh table")
    print(render(find_rows(asked.places), asked.format), end="")
    return 0


def run_list(flags: list[str]) -> int:
    """Print every name that a flag takes.

    Returns:
        the exit code.

    Raises:
        InputError: it takes no words.
    """
    if flags and flags[0] not in ("-h", "--help"):
        raise InputError(f"list takes no words, but got {' '.join(flags)}")
    methods = find_methods()
    grey, colour = (attacks_for(("linf_star", "linf", "l2"), channels) for channels in (1, 3))
    lines = {
        "methods": ", ".join(methods),
        "recipes": ", ".join(sorted({name for method, module in methods.items() for name in module.RECIPES[method]})),
        "data sets": ", ".join(DATASETS),
        "backbones": f"{', '.join(BACKBONES)}, any timm model; options after a colon: convnet:width=64,norm=batch",
        "losses": ", ".join(name for name in losses.__all__ if name[0].isupper()),
        "augmentations": f"a DSA strategy of {', '.join(STRATEGIES)} joined by _, or kornia:Name(...)+Name(...)",
        "attacks": "PGD, 10 steps; pixels in [0, 1]",
    }
    for kind, names in lines.items():
        print(f"{kind:14s}{names}")
    for name in grey:
        sizes = (
            f"{data} {a[name].threat.norm} {a[name].threat.eps:.4g}" for data, a in (("grey", grey), ("colour", colour))
        )
        print(f"{'':14s}  {name:10s} {', '.join(sizes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
