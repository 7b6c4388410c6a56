"""What the page of a run shows of its images and classes."""

from collections.abc import Mapping, Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from distill.distilled import DistilledSet
from distill.evaluation.rows import ColumnKey
from distill.evaluation.shown import Examples, Shown
from distill.reports.class_names import readable
from distill.reports.page import Part, Picture, Pictures, Table
from distill.reports.pictures import difference, row_of_images
from distill.reports.summary import headings

__all__ = ["attacked_images", "by_class", "images_of_classes"]

CLASSES, IMAGES = 20, 10
"""classes, and images of a class, of a set whose images are shown, at most"""
MATRIX = 20
"""classes up to which a confusion matrix is shown; else the most frequent confusions"""


def images_of_classes(distilled: DistilledSet, images: int = IMAGES) -> Pictures:
    """Return the images of a set, a row for each class."""
    classes, names = distilled.image_classes, readable(distilled.classes)
    present = classes.unique().tolist()
    rows = []
    for c in present[:CLASSES]:
        which, name = (classes == c).nonzero()[:images, 0], names[c]
        text = f"{len(which)} images of {name}"
        rows.append(Picture(row_of_images(distilled.images[which]), text, name, len(which)))
    caption = f"The distilled images, {distilled.images.shape[-1]} pixels wide, values cut to [0, 1]."
    if len(present) > CLASSES or (classes.bincount() > images).any():
        caption += f" The first {images} images of the first {min(CLASSES, len(present))} of {len(present)} classes."
    if distilled.labels.ndim == 2:
        row = "the class that it was made for" if distilled.made_for else "its largest probability"
        caption += f" Their labels are soft; each image is in the row of {row}."
    return Pictures(rows, caption)


def attacked_images(examples: Examples, classes: Sequence[str]) -> list[Part]:
    """Return test images, what an attack makes of them, and what a student says of both."""
    magnified, factor = difference(examples.images, examples.attacked)
    rows = []
    for number, label in enumerate(examples.labels.tolist()):
        before, after = examples.probabilities[:, number]
        triple = torch.stack([part[number].float() for part in (examples.images, examples.attacked, magnified)])
        text = f"{_answer(before, classes)}, then {_answer(after, classes)}"
        rows.append(Picture(row_of_images(triple), f"{classes[label]}: {text}", text, 3))
    caption = (
        f"Test images that student 0 classifies correctly, the same under {examples.attack}, and the difference (grey: "
        f"none; {factor:.3g} times larger). Beside them what the student says of the two, with its probability."
    )
    return [Pictures(rows, caption)]


def _answer(probabilities: Tensor, classes: Sequence[str]) -> str:
    best = int(probabilities.argmax())
    return f"{classes[best]} {100 * probabilities[best].item():.0f} %"


def by_class(shown: Shown, bools: Mapping[ColumnKey, Tensor], classes: Sequence[str]) -> list[Part]:
    """Return which classes are taken for which, and the accuracy of each under each attack."""
    present = shown.labels.unique().tolist()
    counts = torch.zeros(len(classes), len(classes))
    for answers in shown.answers:
        counts.index_put_((shown.labels, answers), torch.ones(len(answers)), accumulate=True)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    parts: list[Part] = []
    if len(classes) <= MATRIX:
        lines = [[classes[c], *(_heat(share) for share in shares[c].tolist())] for c in present]
        caption = "Confusion without an attack: of the test images of the row, the share (%) taken for the column."
        parts.append(Table(["", *classes], lines, caption))
    else:
        wrong = shares - shares.diag().diag()
        top = wrong.flatten().topk(15).indices.tolist()
        pairs = [divmod(place, len(classes)) for place in top]
        lines = [[classes[a], classes[b], f"{wrong[a, b].item():.0f}"] for a, b in pairs]
        parts.append(
            Table(["class", "taken for", "share (%)"], lines, "The most frequent confusions without an attack.")
        )
    columns = {column: name for column, name in headings(bools).items() if bools[column].ndim == 2}
    lines = [
        [classes[c], *(f"{100 * bools[column][:, shown.labels == c].double().mean().item():.1f}" for column in columns)]
        for c in present
    ]
    caption = "Accuracy (%) by class, mean over students."
    return [*parts, Table(["class", *columns.values()], lines, caption, title="Accuracy by class under each attack")]


def _heat(share: float) -> Markup:
    return Markup('<span class="heat" style="--v:{}%">{}</span>').format(
        f"{share:.0f}", f"{share:.0f}" if share >= 0.5 else ""
    )
