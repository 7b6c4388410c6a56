"""Robust features: images in [0, 1] that a robust network cannot tell from the real ones.

    x_r = argmin over x in [0, 1] of  || g(x) - g(x_0) ||_2,     from another image, noise, or x_0 itself

g are the features before the classifier of an adversarially trained network. The images have what that network sees,
and of all else only what the start had: from a random other image they keep its other features, so that plain training
on (x_r, y_0) learns what the robust network uses.

"Adversarial Examples Are Not Bugs, They Are Features", Ilyas et al., NeurIPS 2019 (arXiv 1905.02175), section 3.1:
gradient descent with normalised gradients of length .1, 1,000 steps, from another training image; teacher: ResNet-50,
adversarially trained at l2 .5. Deviation: the other image is drawn without replacement.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from baselines.robust_labels.labels import RobustLabels, TeacherText, teacher_with_digest, teachers_of
from distill.data import ImageSet
from distill.runs.description import describe
from distill.runs.locks import locked
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.runs.threads import by_itself
from distill.training.features import embedding
from robust import Normalize
from robust.ranges import Count, Positive, check_ranges

__all__ = ["RobustFeatures", "inverted", "robust_images"]

PART = 250
"""images that are made at once; a killed run makes those of one part again"""


@dataclass(frozen=True)
class RobustFeatures:
    """Which network's features the images keep, and how they are found.

    Raises:
        ValueError: a field is out of its range, or a loss is unknown.
    """

    teacher: TeacherText = "pgd_at:steps=3@l2:0.5"
    """loss of the network, or a file of its weights (.safetensors, .pt, .pth)"""
    teacher_backbone: str = ""
    """its architecture; "" for the network of a file, else that of the images"""
    teacher_epochs: Count = 30
    """passes over the real data"""
    teacher_batch_size: Count = 128
    """real images a step"""
    teacher_flip: bool = True
    """whether half of the real images are mirrored"""
    features_start: Literal["other", "own", "noise"] = "other"
    """start of an image: another real image, the image itself, or uniform noise"""
    features_steps: Count = 1000
    """steps of gradient descent"""
    features_step: Positive = 0.1
    """length of a step (l2, pixels in [0, 1])"""
    features_images: Count | None = None
    """images of each class that are made; None for all of the training set"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "teacher", teacher_with_digest(self.teacher))
        if len(self.labels.teachers) > 1:
            raise ValueError(f"teacher is {self.teacher!r}; features are those of one network")

    @property
    def labels(self) -> RobustLabels:
        """How the network is trained, as that of labels."""
        return RobustLabels(
            self.teacher,
            self.teacher_backbone,
            self.teacher_epochs,
            teacher_batch_size=self.teacher_batch_size,
            teacher_flip=self.teacher_flip,
        )


def inverted(
    network: nn.Module, pixels: Tensor, start: Tensor, normalize: Normalize, steps: int, step: float
) -> Tensor:
    """Return images that the network sees as the given ones: features near theirs, (N, C, H, W), pixels in [0, 1].

    Args:
        network: of normalised images, in evaluation mode, with frozen parameters.
        pixels: (N, C, H, W), the images whose features are wanted.
        start: (N, C, H, W), pixels in [0, 1].
        normalize: from pixels to the network's inputs.
        steps: of gradient descent.
        step: length of a step, l2.
    """
    with torch.no_grad():
        wanted = embedding(network, normalize(pixels))
    for _ in range(steps):
        points = start.detach().requires_grad_()
        with torch.enable_grad():
            distances = (embedding(network, normalize(points)) - wanted).norm(dim=1)
            (gradient,) = torch.autograd.grad(distances.sum(), points)
        lengths = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        start = (points.detach() - step * gradient / lengths).clamp(0, 1)
    return start


def robust_images(real: ImageSet, backbone: str, config: RobustFeatures, run: Run) -> ImageSet:
    """Return the robust images of a training set, with its labels; a stage that all methods and seeds share.

    Args:
        real: the training set, on the device to work on.
        backbone: network of the images, and of the teacher by default.
        config: the settings.
        run: supplies the stages of the teacher and of the images; every process of the run calls this.

    Raises:
        InputError: the teacher cannot be trained or read, or has no features before a linear classifier.
    """
    (teacher,) = teachers_of(real, backbone, config.labels, run)
    settings = {"data": real.identity(), "features": describe(config), "teacher": teacher.stage}
    stage = run.stage("robust_features", settings)
    chosen = torch.cat([*_of_classes(real, config, stage)])
    parts = chosen.split(PART)
    with locked(stage.folder, wait=True):
        barrier()
        if is_main_process():
            with by_itself(real.image_shape[1], run.device):
                _make(real, teacher.network, parts, config, stage)
        barrier()
    images = [_read(stage, number) for number in range(len(parts))]
    labels = real.labels[chosen.to(real.labels.device)]
    made = torch.cat(images).to(real.labels.device)
    return ImageSet(real.name, made, labels, real.classes, real.mean, real.std, source=stage.folder.name)


def _of_classes(real: ImageSet, config: RobustFeatures, stage: Run) -> Iterator[Tensor]:
    """Yield the numbers of the images of each class that are made, on the CPU."""
    for class_ in range(real.num_classes):
        numbers = (real.labels == class_).nonzero().flatten().cpu()
        order = torch.randperm(len(numbers), generator=stage.generator("chosen", class_))
        yield numbers[order[: config.features_images]].sort().values


def _make(real: ImageSet, network: nn.Module, parts: tuple[Tensor, ...], config: RobustFeatures, stage: Run) -> None:
    """Make the images of the missing parts."""
    device = real.labels.device
    normalize = Normalize(real.mean, real.std).to(device)
    network = network.to(device).eval().requires_grad_(False)
    missing = [number for number in range(len(parts)) if not stage.has_tensors(_name(number))]
    others = torch.randperm(len(real), generator=stage.generator("others"))
    with stage.progress("robust features", len(parts), len(parts) - len(missing), unit="part") as bar:
        for number in missing:
            pixels = real.images[parts[number].to(device)]
            if config.features_start == "other":
                first = PART * number
                start = real.images[others[first : first + len(pixels)].to(device)]
            elif config.features_start == "own":
                start = pixels
            else:
                start = torch.rand(pixels.shape, generator=stage.generator("noise", number)).to(pixels)
            how = {"steps": config.features_steps, "step": config.features_step}
            made = inverted(network, pixels, start, normalize, **how)
            stage.write_tensors(_name(number), {"images": made.cpu()})
            bar.update()


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _read(stage: Run, number: int) -> Tensor:
    found = stage.read_tensors(_name(number))
    assert found is not None  # the main process has made it
    return found[0]["images"]
