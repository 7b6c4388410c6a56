"""The methods of RDED, and their presets as functions of the facts of a data set.

rded          the teacher is trained by cross-entropy (Sun et al., CVPR 2024)
robust_rded   rded with PGD adversarial training of the teacher: crops and labels of a robust network
guard_rded    rded with the curvature-regularised loss of GUARD for the teacher
"""

from dataclasses import replace
from functools import partial

from distill.data import Facts
from distill.experiment import Recipe
from distill.methods.method import Method, presets
from sre2l.pipeline import is_incomplete, protocol
from sre2l.precision import Compute
from sre2l.rded import Config, check, distill
from sre2l.recipes import EPOCHS, GUARD, ROBUST, batch_size, evaluation
from sre2l.relabel import Relabel
from sre2l.select import Select
from sre2l.teachers import SMALL, TINY, paper_teacher, quick_teacher
from sre2l.validate import Validate
from sre2l.work import selection_work, student_work

__all__ = ["METHODS", "VALIDATE", "students"]

CANDIDATES = 300
"""images of each class that all scripts of the official code load (mipc)"""
VALIDATE = Validate(horizon=2.0)
"""AdamW 1e-3, weight decay 0.01 of kernels, T = 20; the cosine of the official code ends at half the first rate"""


def students(facts: Facts, ipc: int) -> Relabel:
    """Return the crops and batches of students (argument.py and validation/main.py of the official code).

    Batches are of 10 images with one image per class, 50 with ten, 100 with fifty; twice that with 100 classes or
    1,000, and 100 on Tiny ImageNet. The least area of a crop is 1 / factor, where strips of the crops are shuffled.
    """
    size = 100 if ipc >= 50 else 50 if ipc >= 10 else 10
    if facts.name == "tiny_imagenet":
        size = 100
    elif facts.classes >= 100:
        size *= 2
    factor = _factor(facts)
    size = batch_size(size, ipc * facts.classes)
    return Relabel(300, size, flip=facts.flips, crop_min=1 / factor, strips=factor)


def _factor(facts: Facts) -> int:
    """Return the crops along each side of an image: 1 on CIFAR and Tiny ImageNet, 2 from 128 px (scripts/)."""
    return 2 if facts.size >= TINY else 1


def _recipe(name: str, kind: str, facts: Facts, ipc: int) -> Recipe:
    """Return the recipe "paper" or "quick" of a kind of teacher (`sre2l.teachers`).

    The official code has networks in place of recipes for teachers, except torchvision's IMAGENET1K_V1 on ImageNet;
    here teachers are those of SRe2L's recipes, so that methods differ in the selected images only.
    """
    factor, relabel = _factor(facts), students(facts, ipc)
    select = Select(max(CANDIDATES, factor**2 * ipc), factor=factor)
    if name == "paper":
        config = Config(paper_teacher(kind, facts, published=True), select, relabel, VALIDATE)
    else:
        backbone, compute = "timm:resnet18:stem=imagenet", Compute("bf16", channels_last=True)
        if facts.size <= SMALL:
            backbone, compute = "convnet:width=32,norm=batch", Compute()
        config = Config(quick_teacher(kind, facts), select, relabel, VALIDATE, compute, backbone)
    return Recipe(config, evaluation(name, facts))


def _smoke(config: Config) -> Config:
    return replace(
        config,
        squeeze=replace(config.squeeze, epochs=2, batch_size=16, warmup_epochs=1),
        select=replace(config.select, candidates=12, crops=2),
        relabel=replace(config.relabel, epochs=3, batch_size=min(4, config.relabel.batch_size)),
        backbone="convnet:width=8,depth=2,norm=batch",
    )


_method = partial(
    Method,
    distill=distill,
    work=selection_work,
    protocol=protocol,
    student_work=student_work,
    check=check,
    incomplete=is_incomplete,
    processes="averaged",
    in_benchmark=False,
)

METHODS = (
    _method(
        "rded",
        "real crops that a teacher classifies with most confidence, stitched, with its labels",
        "Sun et al., CVPR 2024, arXiv 2312.03526",
        "rded",
        presets(_recipe, "", smoke=_smoke),
        strength=EPOCHS,
    ),
    _method(
        "robust_rded",
        "RDED with the crops and labels of an adversarially trained teacher (PGD)",
        "Sun et al., arXiv 2312.03526; Madry et al., ICLR 2018, arXiv 1706.06083",
        "rded",
        presets(_recipe, "at", smoke=_smoke),
        strength=ROBUST,
    ),
    _method(
        "guard_rded",
        "RDED with the crops and labels of a teacher trained by the curvature-regularised loss",
        "Sun et al., arXiv 2312.03526; Xue et al., arXiv 2403.10045",
        "rded",
        presets(_recipe, "guard", smoke=_smoke),
        strength=GUARD,
    ),
)
