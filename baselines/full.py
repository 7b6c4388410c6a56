"""The whole training set in place of a distilled one: what no distilled set is expected to reach.

--ipc does not count, and nothing is distilled; the set's file is a copy of all images.

How long students train: a distilled set of ten images a class is one batch, so that the field's 1000 epochs are as many
steps. `quick` takes about as many steps on the real images, `paper` 300 epochs, as DC-BENCH does by default (Cui et
al. 2022, arXiv 2207.09639). The papers that print such rows (84.8 on CIFAR-10, 99.6 on MNIST) do not say.
"""

from dataclasses import dataclass, replace
from functools import partial

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.runs.run import Run
from distill.training.students import Training
from distill.training.work import Work

__all__ = ["METHODS", "Config", "distill", "work"]


@dataclass(frozen=True)
class Config:
    """How students on the whole set are made."""

    backbone: str = "convnet"
    """network of the students"""
    augment: str = ""
    """augmentation of their training: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Return all images.

    Args:
        real: the training set.
        ipc: not used.
        config: the settings.
        run: not used, as nothing is drawn.

    Returns:
        the images in pixels, sorted by class, on their device.

    Raises:
        InputError: the images are too large for memory.
    """
    real = real.in_memory()
    order = real.labels.argsort(stable=True)
    return DistilledSet.of(
        real, real.images[order], real.labels[order], augment=config.augment, backbone=config.backbone
    )


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return what the distillation consists of, for an estimate: nothing."""
    return []


STEPS = 1000
"""of a student in `quick`, about"""
OF_PARTS = 10_000
"""training images that a set is taken for of which users bring any number of classes"""


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    if name == "paper":
        return Recipe(Config(convnet_for(facts.depth)), Evaluation(5, student=Training(epochs=300)))
    examples = OF_PARTS if facts.parts else facts.examples
    epochs = max(1, round(STEPS / max(1, examples / Training.batch_size)))  # E + 1 are run
    config = Config(convnet_for(facts.depth, 32))
    return Recipe(config, Evaluation(3, test_images=2000, student=Training(epochs=epochs)))


_smoke = partial(
    replace,
    backbone="convnet:width=8,depth=2",
)

METHODS = (
    Method(
        "full",
        "the whole training set, an upper bound",
        "no paper: a baseline",
        "coresets",
        presets(_recipe, smoke=_smoke),
        distill=distill,
        work=work,
        more_than_class=True,
        whole_class=True,
    ),
)
