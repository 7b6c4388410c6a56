"""The networks of an evaluation: students on the distilled set, and the surrogates of transfer attacks.

Each is trained once and saved in the run's folder as students/NAME.safetensors; interrupted training starts anew.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.evaluation.column_kinds import Surrogate
from distill.experiment import Evaluation
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.protocol import Protocol
from distill.training.students import TOGETHER, Training, fits_together, train_epochs, train_student, train_together
from distill.training.whiten import preprocessing
from robust import Normalize, loss_named
from robust.losses import InPixels, drawing_from
from robust.threat import family_of

__all__ = ["Trained", "students_of"]

SURROGATE = {"batch_size": 128, "lr": 0.01}
"""SGD of the surrogate on the real data, with the students' momentum and weight decay"""


class Trained:
    """Networks from pixels in [0, 1] to logits, each with its normalisation inside.

    Args:
        distilled: the set to train on, on the device to work on.
        real: the real training images.
        evaluation: how many students, and how they are trained.
        backbone: the students' network.
        run: folder and generators.
        own: the method's own protocol; None for the standard one.
    """

    def __init__(
        self,
        distilled: DistilledSet,
        real: ImageSet,
        evaluation: Evaluation,
        backbone: str,
        run: Run,
        own: Protocol | None = None,
    ):
        self.distilled, self.real, self.evaluation, self.backbone, self.run = distilled, real, evaluation, backbone, run
        self.own, self.epochs = own, evaluation.student.epochs + 1 if own is None else own.epochs
        first_layer = None if own is None else own.preprocess
        self.normalize = (first_layer or Normalize(distilled.mean, distilled.std)).to(distilled.images.device)
        self.augmentation = augmentation(distilled.augment, distilled.mean, distilled.std)

    @cached_property
    def images(self) -> Tensor:
        """The distilled images, normalised, (N, C, H, W)."""
        return self.normalize(self.distilled.images[:])

    def groups(self) -> list[range]:
        """Return the numbers of the students that are trained in one pass: groups on a GPU, each alone on a CPU.

        The groups do not depend on which students were saved before.
        """
        training, count = self.evaluation.student, self.evaluation.students
        pattern = self._untrained(self.backbone, "student", 0)
        together = self.own is None and training.loss == "cross_entropy"
        together = together and fits_together(pattern, self.images, training.batch_size)
        size = TOGETHER if together else 1
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def train(self, numbers: range, each_epoch: Callable[[], object] | None = None) -> None:
        """Train the students of a group, unless they are saved.

        Args:
            numbers: of the students.
            each_epoch: called after each epoch of a student that is trained alone by the standard protocol.
        """
        generators = [self.run.generator("student", number, "training") for number in numbers]

        def train(networks: list[nn.Module]) -> None:
            training = self.evaluation.student
            if len(networks) == 1:
                self._train_on_distilled(networks[0], str(numbers[0]), training, generators[0], each_epoch)
            else:
                arguments = (self.images, self.distilled.labels, training, generators, self.augmentation)
                train_together(networks, *arguments)

        networks = [self._untrained(self.backbone, "student", number) for number in numbers]
        self._trained_once([str(number) for number in numbers], networks, train)

    def student(self, number: int) -> tuple[nn.Module, float]:
        """Return a student that is saved, and the seconds that an epoch of its training took."""
        network, file = self._untrained(self.backbone, "student", number), f"students/{number}.safetensors"
        model, seconds = self._filled(network, file)
        return model, seconds / self.epochs

    def surrogate(self, name: Surrogate) -> nn.Module:
        """Return the network that `transfer` or `transfer_student` attacks are made on."""
        if name == "transfer":
            network = self._untrained(self.backbone, "surrogate", name)
            return self._trained_once([f"surrogate-{name}"], [network], lambda each: self._train_on_real(each[0]))[0][0]
        network = self._untrained(self.evaluation.transfer_backbone, "surrogate", name)
        generator = self.run.generator("surrogate", name, "training")
        plain = replace(self.evaluation.student, loss="cross_entropy")
        train = lambda each: self._train_on_distilled(each[0], name, plain, generator)  # noqa: E731
        return self._trained_once([f"surrogate-{name}"], [network], train)[0][0]

    def _untrained(self, backbone: str, *address: str | int) -> nn.Module:
        network = build(backbone, like=self.distilled, generator=self.run.generator(*address))
        return network.to(self.distilled.images.device)

    def _trained_once(
        self, names: list[str], networks: list[nn.Module], train: Callable[[list[nn.Module]], None]
    ) -> list[tuple[nn.Module, float]]:
        """Return each network behind the normalisation, and the seconds of its training, now or earlier.

        Args:
            names: of the networks' files.
            networks: untrained; they take the weights of their files where these are there.
            train: trains all of them in place.
        """
        files = [f"students/{name}.safetensors" for name in names]
        barrier()  # processes that train a student together find the same files
        if not all(self.run.has_tensors(file) for file in files):
            start = time.perf_counter()
            train(networks)
            seconds = (time.perf_counter() - start) / len(networks)
            for network, file in zip(networks, files, strict=True):
                if is_main_process() and not self.run.has_tensors(file):
                    self.run.write_tensors(file, network.state_dict(), {"seconds": seconds})
            barrier()
        return [self._filled(network, file) for network, file in zip(networks, files, strict=True)]

    def _filled(self, network: nn.Module, file: str) -> tuple[nn.Module, float]:
        """Return a network with the weights of its file, behind the normalisation, and the seconds of its training."""
        state, facts = self.run.read_tensors(file) or ({}, {})
        fill(network, state, self.run.folder / file)
        return nn.Sequential(self.normalize, network).eval(), float(facts.get("seconds", 0.0))

    def _train_on_distilled(
        self,
        network: nn.Module,
        name: str,
        training: Training,
        generator: torch.Generator,
        each_epoch: Callable[[], object] | None = None,
    ) -> None:
        if self.own is not None:
            self.own.train(network, name)
            return
        channels, size = self.images.shape[1:3]
        loss = None
        if training.loss != "cross_entropy":
            normalize = cast(Normalize, self.normalize)  # only a method's own protocol has another first layer
            on_pixels = InPixels(loss_named(training.loss, family_of(channels, size)), normalize)
            loss = drawing_from(on_pixels, generator)
        how = {"augmentation": self.augmentation, "loss": loss, "each_epoch": each_epoch}
        train_student(network, self.images, self.distilled.labels, training, generator, **how)

    def _train_on_real(self, network: nn.Module) -> None:
        training = self.evaluation.student
        optimizer = torch.optim.SGD(
            network.parameters(), lr=SURROGATE["lr"], momentum=training.momentum, weight_decay=training.weight_decay
        )
        train_epochs(
            network,
            self.normalize(self.real.images),
            self.real.labels,
            optimizer,
            epochs=self.evaluation.surrogate_epochs,
            batch_size=SURROGATE["batch_size"],
            generator=self.run.generator("surrogate", "transfer", "training"),
        )


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights of a file into a network.

    Raises:
        InputError: the weights are of another network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise InputError(f"{path} has the weights of another network; delete it to have it made anew") from None


def students_of(
    folder: Path, distilled: DistilledSet, backbone: str, count: int, *, own: bool = False
) -> list[nn.Module]:
    """Return the first students of a finished run, from pixels to logits, in evaluation mode.

    Args:
        folder: the run's.
        distilled: its set, on the device to work on.
        backbone: the students' network.
        count: how many.
        own: whether they were trained by the own protocol of the set's method.
    """
    first_layer = preprocessing(distilled, folder) if own else Normalize(distilled.mean, distilled.std)
    models = []
    for number in range(count):
        network = build(backbone, like=distilled, generator=torch.Generator())
        path = folder / "students" / f"{number}.safetensors"
        fill(network, read_tensors(path)[0], path)
        models.append(nn.Sequential(first_layer, network).to(distilled.images.device).eval())
    return models
