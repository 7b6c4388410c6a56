"""The methods of SRe2L, and their presets as functions of the facts of a data set.

sre2l         the teacher is trained by cross-entropy (Yin et al., NeurIPS 2023)
cda           sre2l with CDA's curriculum of crops in `recover`
guard_sre2l   sre2l with another squeeze.loss: the curvature-regularised loss of GUARD (Xue et al., AAAI 2025)
guard_cda     cda with that loss
"""

from dataclasses import replace
from functools import partial

from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from sre2l.pipeline import Config, check, distill, is_incomplete, protocol
from sre2l.precision import Compute
from sre2l.recover import Recover
from sre2l.relabel import Relabel
from sre2l.squeeze import Squeeze
from sre2l.validate import Validate
from sre2l.work import student_work, work

__all__ = ["METHODS"]

# Weight of GUARD's penalty at h = 3 in normalised units: -l of the README (ImageNette) and of the job scripts (others)
# of GUARD's code. That code parses -l but does not use it at this scale (its loss is `guard_released`), so its authors
# have not run these weights with equation 8.
GUARD_WEIGHT = {"imagenet": 1, "tiny_imagenet": 30, "imagenette": 100}
SMALL, TINY = 32, 128
"""side in pixels up to which a data set uses the settings for CIFAR, and below which those for Tiny ImageNet"""


def _seen(recover: Recover, facts: Facts, cda: bool) -> Recover:
    """Return a recovery with the crops and mirroring that the official codes use at this size.

    SRe2L's recover_cifar.py neither crops nor mirrors images of 32 px (README_CIFAR.md). GUARD's port of CDA to
    CIFAR does both, and cuts at least 0.4 of the area. At 64 px and above all codes crop (0.08) and mirror.
    """
    if facts.size <= SMALL:
        recover = replace(recover, crop_min=0.4) if cda else replace(recover, crop=False, flip=False)
    return replace(recover, milestone=1.0 if cda else 0.0, flip=recover.flip and facts.flips)


def _paper(method: str, facts: Facts, ipc: int, *, alike: bool = False) -> Config:
    """Return the settings of the papers: SRe2L's for its data sets, else GUARD's; CDA's `recover` and GUARD's loss.

    On ImageNet the papers of SRe2L and GUARD differ in more than the loss (the teacher, 4,000 and 2,000 steps, batches
    of 1,024 and 100). `alike` gives all methods GUARD's settings there, so that GUARD's loss is the only difference.

    A data set without a published recipe gets settings by its size: CIFAR's up to 32 px, Tiny ImageNet's below 128 px,
    and from 128 px the settings of GUARD on ImageNette with SRe2L's 4,000 steps of recovery. GUARD's weight is the
    weight for ImageNette.
    """
    guard, cda = method.startswith("guard"), method.endswith("cda")
    dataset, classes = facts.name, facts.classes
    if dataset == "tiny_imagenet" or SMALL < facts.size < TINY:  # SRe2L and CDA, 64 px
        squeeze = Squeeze(lr=0.2, warmup_epochs=5)
        recover = Recover(lr=0.4, r_bn=0.05, jitter=(0, 4)) if cda else Recover(lr=0.1, r_bn=1.0, jitter=(-4, 4))
        relabel = Relabel(epochs=100, batch_size=256, mix="none")
        validate = Validate("sgd", 0.2, 1e-4, "all", warmup_epochs=5, squared=True)
    elif facts.size <= SMALL:  # SRe2L on CIFAR-100, and GUARD's port of it
        squeeze = Squeeze(epochs=200, weight_decay=5e-4, batch_size=128, augment="padded_crop")
        recover = Recover(1000, jitter=(0, 4))
        relabel = Relabel(400, 128, "mixup", 0.8, augment="padded_crop")
        validate = Validate(decay="all", temperature=30.0)
    elif dataset == "imagenet" and not (guard or alike):  # SRe2L: IMAGENET1K_V1 of torchvision is the teacher
        squeeze = Squeeze(start="pretrained:tv_in1k", epochs=0)
        recover, relabel, validate = Recover(), Relabel(batch_size=1024), Validate()
    else:  # GUARD on ImageNet and ImageNette; SRe2L's recovery for folders of unknown size
        squeeze, relabel, validate = Squeeze(lr=0.025, batch_size=32), Relabel(batch_size=100), Validate()
        recover = Recover(iterations=2000 if dataset in GUARD_WEIGHT else 4000)
        recover = replace(recover, r_bn=10.0) if dataset == "imagenette" else recover
    if not facts.flips:
        squeeze, relabel = replace(squeeze, flip=False), replace(relabel, flip=False)
    if guard:
        squeeze = replace(squeeze, loss=f"guard:weight={GUARD_WEIGHT.get(dataset, 100)},h=3")
    squeeze = replace(squeeze, batch_size=_bounded(squeeze.batch_size, facts))
    relabel = replace(relabel, batch_size=_batch(relabel.batch_size, ipc * classes))
    recover = replace(_seen(recover, facts, cda), batch_size=min(100, classes))
    return Config(squeeze, recover, relabel, validate)


def _batch(most: int, images: int) -> int:
    """Return the largest batch size up to `most` without a last batch of one image, on which BatchNorm cannot train.

    If there is no such size, the smallest size above `most`.

    >>> _batch(128, 100), _batch(5, 10), _batch(5, 2), _batch(5, 11), _batch(128, 129), _batch(5, 61)
    (100, 5, 2, 4, 127, 7)
    """
    most = min(most, images)
    return next(size for size in (*range(most, 1, -1), *range(most + 1, images + 1)) if images % size != 1)


def _bounded(batch_size: int, facts: Facts) -> int:
    """Return the batch size of a teacher, at most half of the training images, of which a tenth may be held out."""
    return min(batch_size, max(2, facts.examples // 2))


QUICK_WEIGHT = 1.0
QUICK_ON_8_PIXELS = {"weight": 0.1, "lr": 0.02}
"""On digits the gradient of GUARD's loss is three times that of larger images (norm 40 instead of 10 once the running
statistics of BatchNorm have converged, at the end of the warm-up). Three steps after the warm-up the loss is NaN with
weight 1 at lr 0.05, 0.02 and 0.01, and with weight 0.1 at lr 0.05, but not with weight 0.1 at 0.03. With larger images
it stays finite (MNIST, CIFAR-10 and Tiny-ImageNet-10, the first steps after the warm-up)."""


def _quick(method: str, facts: Facts, ipc: int) -> Config:
    """Return settings for minutes on two cores (ten classes, 64 px): ResNet-18 with ImageNet's stem, bfloat16."""
    guard, cda = method.startswith("guard"), method.endswith("cda")
    small, flip = facts.size <= SMALL, facts.flips
    crop = "padded_crop" if small else "resized_crop"
    squeeze = Squeeze(epochs=12, batch_size=_bounded(64, facts), lr=0.05, warmup_epochs=1, augment=crop, flip=flip)
    weight = QUICK_WEIGHT
    if facts.size <= 8:  # for all methods, so that GUARD's loss is the only difference
        weight, squeeze = QUICK_ON_8_PIXELS["weight"], replace(squeeze, lr=QUICK_ON_8_PIXELS["lr"])
    if guard:
        squeeze = replace(squeeze, loss=f"guard:weight={weight:g},h=3,fraction=0.25")
    recover = _seen(Recover(300, 0.1, 0.1, jitter=(0, 4)), facts, cda)
    relabel = Relabel(200, _batch(min(50, 5 * ipc), ipc * facts.classes), augment=crop, flip=flip)
    backbone = f"timm:resnet18:stem={'stride2' if small else 'imagenet'}"
    return Config(squeeze, recover, relabel, Validate(), Compute("bf16", channels_last=True), backbone)


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    """Return the recipe "paper", "pair" (methods differ only in the loss), or "quick"."""
    if name in ("paper", "pair"):  # the columns of GUARD's tables, eps 1/255
        attacks = "pgd100,square,autoattack,cw,mim"
        students = 1 if facts.classes >= 1000 else 3
        config = _paper(method, facts, ipc, alike=name == "pair")
        return Recipe(config, Evaluation(students, attacks, "aaai25", protocol="own"))
    attacks = "pgd@1/255,pgd@2/255,square:queries=100@1/255"
    return Recipe(_quick(method, facts, ipc), Evaluation(2, attacks, test_images=500, protocol="own"))


def _smoke(config: Config) -> Config:
    return replace(
        config,
        squeeze=replace(config.squeeze, epochs=2, batch_size=16, warmup_epochs=1),
        recover=replace(config.recover, iterations=3),
        relabel=replace(config.relabel, epochs=3, batch_size=min(4, config.relabel.batch_size)),
        backbone="convnet:width=8,depth=2,norm=batch",
    )


_method = partial(
    Method,
    distill=distill,
    work=work,
    protocol=protocol,
    student_work=student_work,
    check=check,
    incomplete=is_incomplete,
    processes="averaged",
    more_than_class=True,
    in_benchmark=False,
)

METHODS = (
    _method(
        "sre2l",
        "squeeze, recover, relabel: images with the classes and BatchNorm statistics that a teacher expects",
        "Yin, Xing, Shen, NeurIPS 2023, arXiv 2306.13092",
        "sre2l",
        presets(_recipe, "sre2l", smoke=_smoke, names=("paper", "pair", "quick")),
    ),
    _method(
        "guard_sre2l",
        "SRe2L from a teacher trained by the curvature-regularised loss",
        "Xue et al., arXiv 2403.10045",
        "guard",
        presets(_recipe, "guard_sre2l", smoke=_smoke, names=("paper", "pair", "quick")),
    ),
    _method(
        "cda",
        "SRe2L with a curriculum of crops",
        "Yin, Shen, TMLR 2024, arXiv 2311.18838",
        "cda",
        presets(_recipe, "cda", smoke=_smoke, names=("paper", "pair", "quick")),
    ),
    _method(
        "guard_cda",
        "CDA from a teacher trained by the curvature-regularised loss",
        "Xue et al., arXiv 2403.10045",
        "guard",
        presets(_recipe, "guard_cda", smoke=_smoke, names=("paper", "pair", "quick")),
    ),
)
