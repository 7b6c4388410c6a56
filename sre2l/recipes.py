"""The methods of SRe2L, and their presets as functions of the facts of a data set.

sre2l         the teacher is trained by cross-entropy (Yin et al., NeurIPS 2023)
cda           sre2l with CDA's curriculum of crops in `recover`
guard_sre2l   sre2l with another squeeze.loss: the curvature-regularised loss of GUARD (Xue et al., AAAI 2025)
at_sre2l      sre2l with PGD adversarial training of the teacher (Madry et al., ICLR 2018)
trades_sre2l  sre2l with TRADES (Zhang et al., ICML 2019)
guard_cda     cda with GUARD's loss
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
from sre2l.teachers import SMALL, TINY, paper_teacher, quick_teacher
from sre2l.validate import Validate
from sre2l.work import student_work, work

__all__ = ["EPOCHS", "GUARD", "METHODS", "ROBUST", "batch_size", "evaluation"]

# Strengths (`Method.strength`) of methods with a robust teacher
ROBUST = "--squeeze.loss pgd_at:steps=2@{1/255,2/255,4/255,8/255}"
GUARD = "--squeeze.loss guard:weight={0.3,1,3},h=3,fraction=0.25"
EPOCHS = "--relabel.epochs {100,200,300}"
"""strengths of a method without a robust teacher: shorter training of students on the labels"""


def _seen(recover: Recover, facts: Facts, cda: bool) -> Recover:
    """Return a recovery with the crops and mirroring that the official codes use at this size.

    SRe2L's recover_cifar.py neither crops nor mirrors images of 32 px (README_CIFAR.md). GUARD's port of CDA to
    CIFAR does both, and cuts at least 0.4 of the area. At 64 px and above all codes crop (0.08) and mirror.
    """
    if facts.size <= SMALL:
        recover = replace(recover, crop_min=0.4) if cda else replace(recover, crop=False, flip=False)
    return replace(recover, milestone=1.0 if cda else 0.0, flip=recover.flip and facts.flips)


def _paper(method: str, facts: Facts, ipc: int, *, alike: bool = False) -> Config:
    """Return the settings of the papers: SRe2L's for its data sets, else GUARD's; CDA's `recover`.

    On ImageNet the papers of SRe2L and GUARD differ in more than the loss (the teacher, 4,000 and 2,000 steps, batches
    of 1,024 and 100). All methods with a robust loss have GUARD's settings there; `alike` gives them to `sre2l` and
    `cda` too, so that the loss is the only difference.

    A data set without a published recipe gets settings by its size: CIFAR's up to 32 px, Tiny ImageNet's below 128 px,
    and from 128 px the settings of GUARD on ImageNette with SRe2L's 4,000 steps of recovery. GUARD's weight is the
    weight for ImageNette.
    """
    kind, cda = method.rpartition("_")[0], method.endswith("cda")
    dataset, classes = facts.name, facts.classes
    squeeze = paper_teacher(kind, facts, published=not alike)
    if dataset == "tiny_imagenet" or SMALL < facts.size < TINY:  # SRe2L and CDA, 64 px
        recover = Recover(lr=0.4, r_bn=0.05, jitter=(0, 4)) if cda else Recover(lr=0.1, r_bn=1.0, jitter=(-4, 4))
        relabel = Relabel(epochs=100, batch_size=256, mix="none")
        validate = Validate("sgd", 0.2, 1e-4, "all", warmup_epochs=5, squared=True)
    elif facts.size <= SMALL:  # SRe2L on CIFAR-100, and GUARD's port of it
        recover = Recover(1000, jitter=(0, 4))
        relabel = Relabel(400, 128, "mixup", 0.8, augment="padded_crop")
        validate = Validate(decay="all", temperature=30.0)
    elif dataset == "imagenet" and not (kind or alike):  # SRe2L: IMAGENET1K_V1 of torchvision is the teacher
        recover, relabel, validate = Recover(), Relabel(batch_size=1024), Validate()
    else:  # GUARD on ImageNet and ImageNette; SRe2L's recovery for folders of unknown size
        relabel, validate = Relabel(batch_size=100), Validate()
        recover = Recover(iterations=2000 if dataset in ("imagenet", "imagenette") else 4000)
        recover = replace(recover, r_bn=10.0) if dataset == "imagenette" else recover
    relabel = replace(relabel, flip=facts.flips)
    relabel = replace(relabel, batch_size=batch_size(relabel.batch_size, ipc * classes))
    recover = replace(_seen(recover, facts, cda), batch_size=min(100, classes))
    return Config(squeeze, recover, relabel, validate)


def batch_size(most: int, images: int) -> int:
    """Return the largest batch size up to `most` without a last batch of one image, on which BatchNorm cannot train.

    If there is no such size, the smallest size above `most`.

    >>> [batch_size(most, images) for most, images in ((128, 100), (5, 10), (5, 2), (5, 11), (128, 129), (5, 61))]
    [100, 5, 2, 4, 127, 7]
    """
    most = min(most, images)
    return next(size for size in (*range(most, 1, -1), *range(most + 1, images + 1)) if images % size != 1)


def _quick(method: str, facts: Facts, ipc: int) -> Config:
    """Return settings for minutes on two cores (ten classes, 64 px): ResNet-18 with ImageNet's stem, bfloat16."""
    small, flip = facts.size <= SMALL, facts.flips
    crop = "padded_crop" if small else "resized_crop"
    squeeze = quick_teacher(method.rpartition("_")[0], facts)
    recover = _seen(Recover(300, 0.1, 0.1, jitter=(0, 4)), facts, method.endswith("cda"))
    relabel = Relabel(200, batch_size(min(50, 5 * ipc), ipc * facts.classes), augment=crop, flip=flip)
    backbone = f"timm:resnet18:stem={'stride2' if small else 'imagenet'}"
    return Config(squeeze, recover, relabel, Validate(), Compute("bf16", channels_last=True), backbone)


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    """Return the recipe "paper", "pair" (methods differ only in the loss), or "quick"."""
    config = _quick(method, facts, ipc) if name == "quick" else _paper(method, facts, ipc, alike=name == "pair")
    return Recipe(config, evaluation(name, facts))


def evaluation(name: str, facts: Facts) -> Evaluation:
    """Return the attacks of a recipe: the columns of GUARD's tables, at eps 1/255; PGD and Square for "quick"."""
    if name == "quick":
        return Evaluation(2, "pgd@1/255,pgd@2/255,square:queries=100@1/255", test_images=500, protocol="own")
    students = 1 if facts.classes >= 1000 else 3
    return Evaluation(students, "pgd100,square,autoattack,cw,mim", "aaai25", protocol="own")


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
        strength=EPOCHS,
    ),
    _method(
        "guard_sre2l",
        "SRe2L from a teacher trained by the curvature-regularised loss",
        "Xue et al., arXiv 2403.10045",
        "guard",
        presets(_recipe, "guard_sre2l", smoke=_smoke, names=("paper", "pair", "quick")),
        strength=GUARD,
    ),
    _method(
        "at_sre2l",
        "SRe2L from an adversarially trained teacher (PGD)",
        "Yin et al., arXiv 2306.13092; Madry et al., ICLR 2018, arXiv 1706.06083",
        "sre2l",
        presets(_recipe, "at_sre2l", smoke=_smoke, names=("paper", "pair", "quick")),
        strength=ROBUST,
    ),
    _method(
        "trades_sre2l",
        "SRe2L from a teacher trained by TRADES",
        "Yin et al., arXiv 2306.13092; Zhang et al., ICML 2019, arXiv 1901.08573",
        "sre2l",
        presets(_recipe, "trades_sre2l", smoke=_smoke, names=("paper", "pair", "quick")),
        strength=ROBUST.replace("pgd_at", "trades"),
    ),
    _method(
        "cda",
        "SRe2L with a curriculum of crops",
        "Yin, Shen, TMLR 2024, arXiv 2311.18838",
        "cda",
        presets(_recipe, "cda", smoke=_smoke, names=("paper", "pair", "quick")),
        strength=EPOCHS,
    ),
    _method(
        "guard_cda",
        "CDA from a teacher trained by the curvature-regularised loss",
        "Xue et al., arXiv 2403.10045",
        "guard",
        presets(_recipe, "guard_cda", smoke=_smoke, names=("paper", "pair", "quick")),
        strength=GUARD,
    ),
)
