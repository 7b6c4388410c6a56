"""What is known of data sets: true of the sets themselves, counted from a folder, and enough for every recipe."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.app.distil import resolve_flags
from distill.app.registry import find_methods
from distill.data import DATASETS, FACTS, FILES, Facts, ImageSet, facts_named, facts_of, load
from distill.data.facts import CODES, depth_at
from distill.errors import InputError
from distill.models import build
from robust.threat import family_of

ROOT = Path(__file__).parents[2]
METHODS = find_methods()
FOLDERS = {
    f"{classes} classes of {channels}x{size}x{size}": replace(
        facts_named("folder"), classes=classes, channels=channels, size=size, examples=classes * 20
    )
    for classes in (2, 200)
    for size in (8, 64, 128)
    for channels in (1, 3)
}


def folder_of(root: Path, sizes: dict[str, int], mode: str = "RGB", side: tuple[int, int] = (12, 12)) -> Path:
    """Make images of classes, so many of each, in both parts."""
    for part in ("train", "val"):
        for name, count in sizes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (*side[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{number}.png")
    return root


# --- the records -----------------------------------------------------------------------------------------------------


def test_every_data_set_has_facts_of_its_name() -> None:
    assert set(FACTS) == set(DATASETS) - {"folder"}
    assert all(facts.name == name for name, facts in FACTS.items())
    assert {name: FACTS[name].size for name, size in FILES.items() if size} == {n: s for n, s in FILES.items() if s}
    assert {name for name, facts in FACTS.items() if facts.files} == set(FILES) - {"folder"}


def test_facts_are_those_of_the_set() -> None:
    train, _ = load("digits", Path("nowhere"))
    facts = FACTS["digits"]
    assert (train.num_classes, len(train)) == (facts.classes, facts.examples)
    assert train.image_shape == (facts.channels, facts.size, facts.size)
    assert (train.mean, train.std) == (facts.mean, facts.std)


@pytest.mark.parametrize("name", FACTS)
def test_constants_have_a_number_a_channel(name: str) -> None:
    facts = FACTS[name]
    assert set(facts.constants) <= set(CODES)
    for mean, std in ((facts.mean, facts.std), *facts.constants.values()):
        assert len(mean) == len(std) == facts.channels
        assert all(0 < value < 1 for value in (*mean, *std))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1},
        {"channels": 2},
        {"size": 0},
        {"examples": 0},
        {"mean": (0.1,)},
        {"constants": {"dc": ((0.1,), (0.1,))}},
        {"constants": {"none": ((0.1,) * 3, (0.1,) * 3)}},
    ],
)
def test_numbers_that_no_data_set_has_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="cifar10 has"):
        replace(FACTS["cifar10"], **change)


def test_a_resized_set_has_the_depth_and_threats_of_its_new_size() -> None:
    facts = facts_of("cifar10", Path("nowhere"), 64)
    assert (facts.size, facts.depth, facts.threats, facts.constants) == (64, 4, "imagenet", FACTS["cifar10"].constants)
    assert FACTS["cifar10"].threats == "cifar10"
    assert facts_of("cifar10", Path("nowhere")) is FACTS["cifar10"]
    assert [size for size in range(4, 300) if size >> depth_at(size) > 7] == []
    assert family_of(1, 128) == "mnist"


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="unknown data set 'cifar11'"):
        facts_of("cifar11", Path("nowhere"))


CITED = {
    "baselines/dm/recipes.py": "cifar10",  # lr_img of the official readme
    "baselines/mtt/recipes.py": "cifar10 cifar100 tiny_imagenet imagenet imagenette",  # the papers' tables
    "baselines/mtt/label_recipes.py": "cifar10 cifar100 tiny_imagenet",  # DATM's table
    "baselines/rome/recipes.py": "cifar10 cifar100 tiny_imagenet",  # the commands of ROME and IDM
    "distill/app/benchmark_cells.py": "mnist cifar10",  # default of a flag
    "distill/evaluation/columns.py": "mnist cifar10",  # families of threats, which `robust` names so
    "distill/models/__init__.py": "imagenet",  # name of a ResNet's stem
    "distill/methods/dc_recipes.py": "cifar10",  # the sweep of GUARD's weight
    "distill/reports/paper.py": "mnist cifar10",  # the paper's tables
    "sre2l/rded_recipes.py": "tiny_imagenet",  # batches of RDED
    "sre2l/recipes.py": "imagenet tiny_imagenet imagenette",  # settings of SRe2L and CDA
    "sre2l/teachers.py": "imagenet tiny_imagenet imagenette",  # settings and weights of SRe2L and GUARD
}
"""file -> data sets whose published or measured numbers it has, or words that only look like them"""


def test_no_other_file_names_a_data_set() -> None:
    found = {}
    for package in ("distill", "baselines", "sre2l"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent != ROOT / "distill/data":
                text = re.sub(r"(?m)^\s*(>>>|\.\.\.) .*$", "", path.read_text())
                names = {name for name in FACTS for _ in re.finditer(rf'["\',]{name}["\',]', text)}
                if names:
                    found[str(path.relative_to(ROOT))] = names
    uncited = {path: names - set(CITED.get(path, "").split()) for path, names in found.items()}
    assert not any(uncited.values()), uncited


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("P", 3)])
def test_facts_of_a_folder_are_counted(mode: str, channels: int, tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": 2, "b": 3, "c": 1}, mode)
    facts = facts_of("folder", root)
    train, _ = load("folder", root)
    assert (facts.classes, facts.channels, facts.size, facts.examples) == (3, channels, 12, 6)
    assert (facts.channels, facts.size, facts.size) == train.image_shape
    assert (facts.derived, facts.constants, facts.mean) == (True, {}, ())
    assert facts_of("folder", root, 64).size == 64


def test_nothing_is_decoded_for_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path, {"a": 150, "b": 1}, side=(20, 9))
    opened, plain = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or plain(*a, **k))
    monkeypatch.setattr(Image.Image, "convert", None)
    assert facts_of("folder", root).size == 9  # loading refuses it: no square
    assert len(opened) == 100


def test_facts_of_a_folder_with_damaged_files(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": 3, "b": 2})
    for path in sorted((root / "train/a").iterdir())[:2]:
        path.write_bytes(b"no image")
    assert facts_of("folder", root).size == 12
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="must contain at least two classes of readable image files"):
        facts_of("folder", root)


@pytest.mark.parametrize("classes", [{}, {"one": 1}])
def test_facts_of_no_such_folder(classes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train must contain"):
        facts_of("folder", folder_of(tmp_path, classes) if classes else tmp_path / "none")


def test_flags_start_from_the_recipe_of_the_folder(tmp_path: Path) -> None:
    method = METHODS["dc"]
    root = folder_of(tmp_path, {"a": 2, "b": 2}, side=(64, 64))
    experiment, _ = resolve_flags(method, "folder", ["--data-dir", str(root), "--recipe", "paper"])
    assert experiment.config.backbone == "convnet:width=128,depth=4"
    small = ["--data-dir", str(root), "--recipe", "paper", "--image-size", "8"]
    assert resolve_flags(method, "folder", small)[0].config.backbone == "convnet:width=128,depth=2"
    nowhere = ["--data-dir", str(tmp_path / "none"), "--recipe", "paper"]  # whoever loads it names the error
    assert resolve_flags(method, "folder", nowhere)[0].config.backbone == "convnet"
    for bad in ("-8", "0", "x"):
        with pytest.raises(InputError, match="--image-size"):
            resolve_flags(method, "folder", ["--data-dir", str(root), "--image-size", bad])


# --- recipes ---------------------------------------------------------------------------------------------------------


@cache
def built(spec: str, channels: int, size: int, classes: int) -> None:
    build(spec, channels=channels, image_size=size, num_classes=classes, generator=torch.Generator())


def recipes_of(method: str, facts: Facts) -> dict[tuple[str, int], object]:
    return {
        (name, ipc): recipe(facts, ipc) for name, recipe in METHODS[method].recipes.items() for ipc in (1, 2, 10, 50)
    }


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_one_for_a_folder(method: str, folder: str) -> None:
    """Configs validate when made; the network builds, and no batch is larger than what it is drawn from."""
    facts = FOLDERS[folder]
    for (name, ipc), recipe in recipes_of(method, facts).items():
        config = recipe.config
        for spec in (config.backbone, *getattr(config, "pool", ())):
            built(spec, facts.channels, facts.size, facts.classes)
        if hasattr(config, "target_batch") and name != "smoke":
            assert config.target_batch >= facts.classes
        if hasattr(config, "relabel"):
            images, batch = ipc * facts.classes, config.relabel.batch_size
            assert batch <= images
            assert images % batch != 1
        if hasattr(config, "recover"):
            assert config.recover.batch_size <= max(100, facts.classes)
        METHODS[method].work(config, ipc, facts.classes, facts.examples)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].check])
@pytest.mark.parametrize("classes", [2, 3, 4, 11, 13, 16, 61])
def test_checks_accept_derived_recipes(method: str, classes: int) -> None:
    """Fewer than five classes had more images to a batch than there were, more than twelve left a last one of one."""
    facts = replace(facts_named("folder"), classes=classes, channels=1, size=8, examples=20 * classes)
    labels = torch.arange(facts.examples) % classes
    pixels = torch.zeros(1, 1, 8, 8).expand(facts.examples, -1, -1, -1)
    real = ImageSet("folder", pixels, labels, tuple(map(str, range(classes))), (0.5,), (0.5,))
    for name in ("paper", "quick"):
        for ipc in (1, 10):
            METHODS[method].check(real, ipc, METHODS[method].recipes[name](facts, ipc).config, 1)


def test_a_row_of_mtt_is_that_of_a_similar_set() -> None:
    """Nobody published one for a folder; those of CIFAR-10 were taken whatever its size and classes."""

    def row(classes: int, size: int) -> tuple:
        facts = replace(facts_named("folder"), classes=classes, size=size)
        config = METHODS["mtt"].recipes["paper"](facts, 10).config
        return config.syn_steps, config.max_start_epoch, config.lr_img, config.zca

    assert row(10, 32) == (30, 20, 100.0, False)
    assert row(200, 32) == (20, 20, 1000.0, False)
    assert row(200, 64) == (20, 40, 10_000.0, False)
    assert row(10, 64) == row(200, 128) == (20, 10, 1000.0, False)
