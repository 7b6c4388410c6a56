"""An experiment: one frozen dataclass with every choice that a result depends on."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from distill.data import Facts, label
from distill.training.students import Training
from robust.ranges import Count, NonNegative, Range, Whole, check_ranges

__all__ = ["Evaluation", "Experiment", "Recipe"]


COLUMNS = {"identity": False}
"""metadata of fields that only select columns of a table: other values add columns to the same run"""
LATER = {"later": True}
"""metadata of fields that earlier versions lacked: at its default a run is the run of an earlier version"""


@dataclass(frozen=True)
class Evaluation:
    """Students and attacks.

    Raises:
        ValueError: a field is out of its range.
    """

    students: Annotated[int, Range(least=1, most=10_000)] = 5
    """networks trained on the distilled set, each from its own initialisation"""
    attacks: str = field(default="linf_star,linf,l2,pgd_ce_margin@linf", metadata=COLUMNS)
    """attacks on the students, separated by commas; each is NAME[:field=value,...][@THREAT], with a name from
    `bash run.sh list`. Clean accuracy is always included"""
    threat: str = field(default="linf_star", metadata=COLUMNS)
    """threat of attacks without their own: linf_star, linf, l2, aaai25, standard, standard_l2, 8/255, l2:0.5"""
    eps: str = field(default="", metadata=COLUMNS)
    """sizes for a curve, such as 0,1/255,2/255,4/255; attacks without their own threat run at each, in the norm of
    --threat"""
    surrogate_epochs: Count = 10
    """epochs for which the network of `transfer` is trained on the real data"""
    transfer_backbone: str = "alexnet"
    """the other student's network for `transfer_student`"""
    test_images: Count | None = None
    """class-balanced part of the test set, drawn once for all runs; None for all"""
    protocol: Literal["standard", "own"] = "standard"
    """training of the students: standard, the same for all methods, or own, the method's. standard is on the labels
    of the set: classes (hard), learned probabilities (soft), or a teacher's (METHOD_robust_labels). With own, sre2l
    and cda train on a teacher's labels of every crop; sldd, frepo and kip on the labels that were learned; others on
    the labels of the set"""
    student: Training = field(default_factory=Training)
    """how a student of the standard protocol is trained"""

    @property
    def columns(self) -> dict[str, str]:
        """The fields that name columns of a table only, which experiment.json has beside the experiment."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata == COLUMNS}

    @property
    def how(self) -> str:
        """How students are trained, as tables name it: the loss of the standard protocol, or "own"."""
        return "own" if self.protocol == "own" else self.student.loss

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Recipe:
    """A preset of a method for a data set and an ipc: its config and its evaluation."""

    config: Any
    evaluation: Evaluation


RecipeOf = Callable[[Facts, int], Recipe]
"""(facts of the data set at the size at which it is seen, images per class) -> the recipe"""


@dataclass(frozen=True)
class Experiment:
    """One run: what is distilled, how, and how the result is evaluated.

    Raises:
        ValueError: a field is out of its range.
    """

    method: Annotated[str, tyro.conf.Suppress]
    """name of the method"""
    dataset: Annotated[str, tyro.conf.Suppress]
    """name of the data set"""
    config: Annotated[Any, tyro.conf.arg(name="")]
    """settings of the method"""
    evaluation: Annotated[Evaluation, tyro.conf.arg(name="")]
    """students and attacks"""
    recipe: str = "paper"
    """preset that the other flags start from: paper, or quick (minutes on two cores); `bash run.sh list` has further
    presets of some methods"""
    ipc: Count = 1
    """distilled images per class"""
    seed: Whole = 0
    """root of all randomness; initial images, networks, batches, students and attacks depend on it"""
    image_size: Annotated[int, Range(least=4, most=1024, hint="pixels")] | None = None
    """side in pixels to which images are resized first; None for the size of the data set. Areas are averaged"""
    split: Literal["test", "validation"] = "test"
    """images for evaluation: the test set, or, to choose hyper-parameters, a held-out tenth of the training set"""
    blur: NonNegative = field(default=0.0, metadata=LATER)
    """standard deviation in pixels of a Gaussian blur of the training images, after they are resized; 0 for none.
    Images for evaluation are not blurred. A control: how much robustness comes from smooth images alone"""

    def __post_init__(self) -> None:
        check_ranges(self)

    def data_name(self, data_dir: Path) -> str:
        """Return the data as folders and tables name it: cifar10, cifar10-16px-blur0.75, folder-pets-1f3a9c-validation.

        Args:
            data_dir: folder of the real data sets.
        """
        size = "" if self.image_size is None else f"-{self.image_size}px"
        blur = "" if self.blur == 0 else f"-blur{self.blur:g}"
        return f"{label(self.dataset, data_dir)}{size}{blur}{'' if self.split == 'test' else '-validation'}"

    def folder(self, data_dir: Path) -> Path:
        """Return the run's folder, relative to the folder of all runs; arguments as of `data_name`."""
        return Path(self.method.replace(":", "."), self.data_name(data_dir), f"ipc{self.ipc}", f"seed{self.seed}")
