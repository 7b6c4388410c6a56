"""Draws the pictures of the methods' pages, and the README's, from runs: `python -m tests.golden.pictures RUNS`.

docs/methods/index.md has the command of the runs. A picture has a block of rows for each method of its page, and the
first images of each class, enlarged without blur; soft labels stand below the images as bars, one a class. The README's
picture has accuracy against the radius beside the images, from docs/results.
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill.distilled import DistilledSet
from distill.evaluation.rows import parse_threat
from distill.reports.figures import draw_lines
from distill.reports.style import DPI, empty_figure
from distill.runs.files import write_atomic
from robust import Threat

__all__ = ["METHODS", "PICTURES", "draw", "line_of"]

PICTURES = Path(__file__).parents[2] / "docs" / "pictures" / "methods"
CIFAR = "cifar10-16px"
DATA = {"cda": "imagenette-64px-validation", "sre2l": "imagenette-64px-validation"}
"""page -> folder of the data of its runs, where that is not CIFAR"""
METHODS = {
    "attacked": ("dm", "at_dm"),
    "c2r": ("c2r",),
    "cafe": ("cafe", "cafe_dsa", "guard_cafe"),
    "cda": ("cda",),
    "coresets": ("random", "herding", "kcenter", "mfc"),
    "datm": ("datm",),
    "dc": ("dc",),
    "dcc": ("dcc", "dsac"),
    "dd": ("dd",),
    "dim": ("dim",),
    "dm": ("dm",),
    "dsa": ("dsa",),
    "frepo": ("frepo",),
    "guard": ("guard_dc", "guard_dsa"),
    "kip": ("kip",),
    "mat": ("mat",),
    "mtt": ("mtt",),
    "rded": ("rded",),
    "robust_features": ("random", "random_robust_features"),
    "robust_labels": ("random_plain_labels", "random_robust_labels", "random_guard_labels"),
    "rome": ("idm", "rome"),
    "sldd": ("sldd",),
    "sre2l": ("sre2l", "at_sre2l"),
    "tesla": ("tesla",),
}
"""page -> the methods whose images its picture has"""
FRONT = PICTURES.parents[1] / "pictures" / "images-and-robustness.png"
RADII = PICTURES.parents[1] / "results" / "radii-cifar10-16px.csv"
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "springer",
    "n02979186": "cassette",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "horn",
    "n03417042": "truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""folder of a class of Imagenette -> what it shows"""
IMAGES = {"dc": "DC", "guard_dc": "GUARD on DC", "random": "random real images"}
"""method -> how the README's picture names its images"""
LINES = {
    "dc": "DC",
    "guard_dc": "GUARD on DC",
    "random_plain_views": "random images, a plain teacher's labels",
    "random_guard_views": "random images, a GUARD teacher's labels",
}
"""method -> how the README's picture names its line"""
CELL = 64
"""side of an image in the picture, in pixels"""
BARS = 24
"""height of the bars of a label"""
GAP = 2
"""between images"""
LINE = 20
"""height of a line of text"""
INK, PAPER = "#222222", "white"  # the page behind may be dark; the picture brings its own paper
BAR, OWN_BAR = "#56B4E9", "#D55E00"


def draw(sets: Mapping[str, DistilledSet], images: int) -> Image.Image:
    """Return the picture: a column for each class, a block of rows for each set.

    Args:
        sets: name -> its set; all have the same classes, in the same order.
        images: of each class, at most.
    """
    classes = next(iter(sets.values())).classes
    font = ImageFont.load_default(size=13)
    heights = [_height(one, images) for one in sets.values()]
    width = len(classes) * (CELL + GAP) + GAP
    whole = Image.new("RGB", (width, LINE + sum(heights) + len(sets) * (LINE + GAP)), PAPER)
    write = ImageDraw.Draw(whole)
    for number, name in enumerate(classes):
        place = (GAP + number * (CELL + GAP) + CELL / 2, LINE / 2)
        write.text(place, IMAGENETTE.get(name, name), fill=INK, font=font, anchor="mm")
    top = LINE
    for (name, one), height in zip(sets.items(), heights, strict=True):
        write.text((GAP, top + LINE / 2), name, fill=INK, font=font, anchor="lm")
        top += LINE
        _draw_block(whole, one, images, top)
        top += height + GAP
    return whole


def _height(one: DistilledSet, images: int) -> int:
    rows = min(images, int(torch.bincount(_columns(one), minlength=1).max()))
    return rows * (CELL + GAP + (BARS + GAP if one.labels.ndim == 2 else 0))


def _columns(one: DistilledSet) -> Tensor:
    """Return the column of each image: its class.

    Sets with soft labels of the commits of the runs do not store it; their images are in the order of the classes.
    """
    if one.labels.ndim == 1 or one.made_for:
        return one.image_classes.cpu()
    ipc = max(1, len(one.images) // len(one.classes))
    return torch.arange(len(one.images)) // ipc


def _draw_block(whole: Image.Image, one: DistilledSet, images: int, top: int) -> None:
    columns = _columns(one)
    soft = one.labels if one.labels.ndim == 2 else None
    for column in range(len(one.classes)):
        left = GAP + column * (CELL + GAP)
        for row, index in enumerate((columns == column).nonzero().flatten().tolist()[:images]):
            place = top + row * (CELL + GAP + (BARS + GAP if soft is not None else 0))
            whole.paste(_picture(one.images[index : index + 1][0]), (left, place))
            if soft is not None:
                _draw_label(ImageDraw.Draw(whole), soft[index], column, left, place + CELL + GAP)


def _picture(image: Tensor) -> Image.Image:
    pixels = image.float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).expand(3, -1, -1)
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return small.resize((CELL, CELL), Image.Resampling.NEAREST if image.shape[-1] <= CELL else Image.Resampling.LANCZOS)


def _draw_label(write: ImageDraw.ImageDraw, label: Tensor, own: int, left: int, top: int) -> None:
    """Draw a soft label as bars, the bar of the image's own class in another colour."""
    width = CELL / len(label)
    for number, share in enumerate(label.tolist()):
        box = (left + number * width, top + BARS * (1 - share), left + (number + 1) * width - 2, top + BARS)
        write.rectangle(box, fill=OWN_BAR if number == own else BAR)


def radii() -> dict[str, list[tuple[float, float, float | None]]]:
    """Return the lines of the README's picture: the mean over sets at each radius, and the deviation between them."""
    found: dict[str, dict[float, list[float]]] = {method: {} for method in LINES}
    with open(RADII, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["attack"] == "clean" or row["attack"].startswith("pgd@"):
                threat = parse_threat(row["threat"])
                eps = threat.eps if isinstance(threat, Threat) else 0.0
                found[row["method"]].setdefault(eps, []).append(float(row["mean"]))
    return {
        LINES[method]: [(eps, fmean(means), stdev(means) if len(means) > 1 else None) for eps, means in line.items()]
        for method, line in found.items()
    }


def draw_front(sets: Mapping[str, DistilledSet], path: Path) -> None:
    """Draw the README's picture: images left, accuracy against the radius right."""
    figure = empty_figure(11, 4.1)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    left.imshow(draw(sets, images=2), interpolation="antialiased")
    left.set_axis_off()
    draw_lines(right, radii())
    right.set_xlabel("radius ε of PGD-10, linf, pixels in [0, 1]")
    right.legend(frameon=False, fontsize="small")
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def line_of(page: str) -> str:
    """Return the line that shows the picture in its page.

    >>> line_of("rome")
    '![Images that idm and rome make of CIFAR-10 at 16 px](../pictures/methods/rome.png)'
    """
    *first, last = METHODS[page]
    who = f"{', '.join(first)} and {last} make" if first else f"{last} makes"
    what = "Imagenette at 64 px" if page in DATA else "CIFAR-10 at 16 px"
    return f"![Images that {who} of {what}](../pictures/methods/{page}.png)"


def set_of(runs: Path, method: str, data: str = CIFAR) -> Path:
    """Return the file of the set of a method, whether it is there or not."""
    return runs / method / data / "ipc10" / "seed0" / "distilled.safetensors"


def main(runs: Path) -> None:
    """Draw the picture of every page whose runs are there, and name the others."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for page, methods in METHODS.items():
        files = {method: set_of(runs, method, DATA.get(page, CIFAR)) for method in methods}
        if missing := [method for method, file in files.items() if not file.is_file()]:
            print(f"{page}: no run of {', '.join(missing)} in {runs}")
            continue
        rows = 1 if page in DATA else 2 if len(files) > 1 else 3
        picture = draw({method: DistilledSet.load(file) for method, file in files.items()}, rows)
        write_atomic(PICTURES / f"{page}.png", lambda file, one=picture: one.save(file, format="png", optimize=True))
    draw_front({words: DistilledSet.load(set_of(runs, method)) for method, words in IMAGES.items()}, FRONT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
