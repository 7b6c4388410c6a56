"""The whole training set instead of a distilled set: an upper bound for distilled sets.

--ipc is ignored, and nothing is distilled; the set's file is a copy of all images.

Length of student training: a distilled set with ten images per class is one batch, so the field's usual 1000 epochs are
1000 steps. `quick` takes about 1000 steps on the real images; `paper` takes 300 epochs, the default of DC-BENCH (Cui et
al. 2022, arXiv 2207.09639). The papers that report this upper bound (84.8 on CIFAR-10, 99.6 on MNIST) do not say how
long they trained.
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
    """How students are trained on the whole training set."""

    backbone: str = "convnet"
    """network of the students"""
    augment: str = ""
    """augmentation of student training: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Return all images.

    Args:
        real: the training set.
        ipc: not used.
        config: the settings.
        run: not used, as nothing is drawn.

    Returns:
        all images in pixels, sorted by class, on the device of `real`.

    Raises:
        InputError: the images are too large for memory.
    """
    real = real.in_memory()
    order = real.labels.argsort(stable=True)
    return DistilledSet.of(
        real, real.images[order], real.labels[order], augment=config.augment, backbone=config.backbone
    )


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the distillation for the time estimate: none."""
    return []


STEPS = 1000
"""approximate training steps of a student in `quick`"""
ASSUMED_EXAMPLES = 10_000
"""assumed number of training images for a data set of which users supply any number of classes"""


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    if name == "paper":
        return Recipe(Config(convnet_for(facts.depth)), Evaluation(5, student=Training(epochs=300)))
    examples = ASSUMED_EXAMPLES if facts.parts else facts.examples
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
        "the whole training set, an upper bound of plain clean accuracy",
        "no paper: a baseline",
        "coresets",
        presets(_recipe, smoke=_smoke),
        distill=distill,
        why_one="there is nothing to distil",
        work=work,
        more_than_class=True,
        whole_class=True,
    ),
)
