"""An iteration of the robust methods beside one of DC: recipe `quick`, CIFAR-10 at 16 px, ten images a class.

Each method distils for some iterations, its pool of networks and its extractor included; the time of an iteration is
the least that its own log has. What an iteration is, a method counts: one step of the images in DM, ROME and C2R, in DC
ten matchings with training of the network between them. So the total of a run is printed too, by the recipe's count.
The experts of MTT and MAT are trained before: the time of their epochs is printed last.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from baselines.mtt.trajectories import Expert, experts
from distill.app.registry import find_methods
from distill.data import FACTS
from distill.methods.method import Method
from distill.runs.run import Run
from distill.runs.scalars import METRICS, read_scalars
from robust import Normalize
from tests.bench.dc import random_set
from tests.bench.side_by_side import Row, rows_of

METHODS = ("dc", "guard_dc", "fast_at_dc", "at_dc", "trades_dc", "dm", "at_dm", "idm", "rome", "c2r", "mtt", "mat")
WITH_EXPERTS = ("mtt", "mat")
ITERATIONS = 3
"""of a run; the first also compiles and fills caches"""
ROUNDS = 3
SIZE, IPC, IMAGES = 16, 10, 2000


def bench() -> list[Row]:
    """Return the time of an iteration of each method, and of all iterations of its recipe."""
    methods = find_methods()
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(ROUNDS):
        for name, found in times.items():
            found.append(_iteration(methods[name]))
    counts = {name: _config(methods[name]).iterations for name in METHODS}
    least = {name: min(found) for name, found in times.items()}
    title = f"an iteration, {SIZE} px, ten images a class, recipe quick"
    rows = rows_of(title, least, ROUNDS, {name: f"{counts[name]} iterations" for name in METHODS})
    whole = {name: seconds * counts[name] for name, seconds in least.items()}
    rows += rows_of("all iterations of the recipe", whole, ROUNDS)
    epochs = {name: min(_expert_epoch(methods[name]) for _ in range(ROUNDS)) for name in WITH_EXPERTS}
    return rows + rows_of(f"an epoch of an expert, {IMAGES} images", epochs, ROUNDS)


def _config(method: Method, **fields: int) -> Any:
    recipe = method.recipes["quick"](replace(FACTS["cifar10"], size=SIZE), IPC)
    if method.name in WITH_EXPERTS:
        fields["num_experts"] = 1
    return replace(recipe.config, **fields)


def _expert_epoch(method: Method) -> float:
    """Return the seconds of an epoch of the training of an expert."""
    config, real = _config(method), random_set(SIZE, IMAGES)
    settings = {"loss": config.expert_loss, "augment": config.augment, "lr": config.lr_expert}
    settings |= {"backbone": config.backbone, "batch_size": config.batch_train, "average": config.expert_average}
    expert = Expert(**settings, zca=False, epochs=1, epoch_images=None, seed=0)
    with _run() as run:
        begun = time.perf_counter()
        experts(real, Normalize(real.mean, real.std), expert, 1, run)
        return time.perf_counter() - begun


def _iteration(method: Method) -> float:
    """Return the least seconds of an iteration of a short run."""
    config = _config(method, iterations=ITERATIONS)
    with _run() as run:
        method.distill(random_set(SIZE, IMAGES), IPC, config, run)
        steps = read_scalars(run.folder / METRICS)
    return min(step["seconds"] for step in steps if "extractor_loss" not in step)


@contextmanager
def _run() -> Iterator[Run]:
    """Give a silent run in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        yield Run(Path(folder), None).begin()
