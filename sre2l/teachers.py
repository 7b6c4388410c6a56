"""The recipes of teachers: how `squeeze` trains them at each size, by cross-entropy or by a robust loss.

A kind of loss is "" (cross-entropy), "guard" (Xue et al., AAAI 2025), "at" (PGD adversarial training, Madry et al.,
ICLR 2018) or "trades" (Zhang et al., ICML 2019). Kinds differ in `squeeze.loss` only, except that on ImageNet SRe2L's
teacher is a published network.
"""

from dataclasses import replace

from distill.data import Facts
from sre2l.squeeze import Squeeze

__all__ = ["SMALL", "TINY", "paper_teacher", "quick_teacher"]

# Weight of GUARD's penalty at h = 3 in normalised units: -l of the README (ImageNette) and of the job scripts (others)
# of GUARD's code. That code parses -l but does not use it at this scale (its loss is `guard_released`), so its authors
# have not run these weights with equation 8.
GUARD_WEIGHT = {"imagenet": 1, "tiny_imagenet": 30, "imagenette": 100}
SMALL, TINY = 32, 128
"""side in pixels up to which a data set uses the settings for CIFAR, and below which those for Tiny ImageNet"""
ADVERSARIAL = {"at": "pgd_at", "trades": "trades"}
"""kind -> name of the loss"""

QUICK_WEIGHT = 1.0
QUICK_ON_8_PIXELS = {"weight": 0.1, "lr": 0.02}
"""On digits the gradient of GUARD's loss is three times that of larger images (norm 40 instead of 10 once the running
statistics of BatchNorm have converged, at the end of the warm-up). Three steps after the warm-up the loss is NaN with
weight 1 at lr 0.05, 0.02 and 0.01, and with weight 0.1 at lr 0.05, but not with weight 0.1 at 0.03. With larger images
it stays finite (MNIST, CIFAR-10 and Tiny-ImageNet-10, the first steps after the warm-up)."""


def paper_teacher(kind: str, facts: Facts, *, published: bool) -> Squeeze:
    """Return the papers' training of a teacher: SRe2L's for its data sets, else GUARD's.

    Args:
        kind: of the loss.
        facts: of the data set.
        published: whether the teacher on ImageNet is torchvision's IMAGENET1K_V1, as in SRe2L, CDA and RDED; it has no
            robust loss.
    """
    if facts.name == "tiny_imagenet" or SMALL < facts.size < TINY:  # SRe2L and CDA, 64 px
        teacher = Squeeze(lr=0.2, warmup_epochs=5)
    elif facts.size <= SMALL:  # SRe2L on CIFAR-100, and GUARD's port of it
        teacher = Squeeze(epochs=200, weight_decay=5e-4, batch_size=128, augment="padded_crop")
    elif facts.name == "imagenet" and published and not kind:
        teacher = Squeeze(start="pretrained:tv_in1k", epochs=0)
    else:  # GUARD on ImageNet and ImageNette
        teacher = Squeeze(lr=0.025, batch_size=32)
    if kind == "guard":
        teacher = replace(teacher, loss=f"guard:weight={GUARD_WEIGHT.get(facts.name, 100)},h=3")
    elif kind:
        teacher = replace(teacher, loss=_adversarial(kind, facts, 10 if facts.size <= SMALL else 3))
    return _sized(replace(teacher, flip=facts.flips), facts)


def quick_teacher(kind: str, facts: Facts) -> Squeeze:
    """Return the training of a teacher for minutes on two cores: 12 epochs."""
    crop = "padded_crop" if facts.size <= SMALL else "resized_crop"
    teacher = _sized(Squeeze(epochs=12, batch_size=64, lr=0.05, warmup_epochs=1, augment=crop, flip=facts.flips), facts)
    weight = QUICK_WEIGHT
    if facts.size <= 8:  # for all kinds, so that the loss is the only difference
        weight, teacher = QUICK_ON_8_PIXELS["weight"], replace(teacher, lr=QUICK_ON_8_PIXELS["lr"])
    if kind == "guard":
        return replace(teacher, loss=f"guard:weight={weight:g},h=3,fraction=0.25")
    return replace(teacher, loss=_adversarial(kind, facts, 2)) if kind else teacher


def _sized(teacher: Squeeze, facts: Facts) -> Squeeze:
    """Return the training with at most half of the images in a batch, as a tenth of them may be held out."""
    return replace(teacher, batch_size=min(teacher.batch_size, max(2, facts.examples // 2)))


def _adversarial(kind: str, facts: Facts, steps: int) -> str:
    """Return the loss of an adversarially trained teacher: eps 4/255 up to 32 px, else 1/255, in pixels.

    1/255 is the radius of GUARD's tables. At 32 px and below, where students are attacked at 2/255 and 8/255 too, a
    teacher at 4/255 gave the most robust labels in the pilots of this project.
    """
    return f"{ADVERSARIAL[kind]}:steps={steps}@{4 if facts.size <= SMALL else 1}/255"
