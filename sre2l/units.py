"""Files of independent units of work, each with some of the images of a stage, and the images of all of them.

unit-NNNNN.safetensors has `images` (n, C, H, W) in pixels and their numbers `places` (n,), class * ipc + index.
"""

from pathlib import Path

import torch
from torch import Tensor

from distill.data.shards import Shards
from distill.errors import InputError
from distill.runs.files import read_tensors, write_tensors

__all__ = ["read_units", "unit_file", "write_unit"]

LIMIT = 4 * 2**30
"""bytes of images above which they stay in files"""


def unit_file(folder: Path, number: int, kind: str = ".safetensors") -> Path:
    """Return the path of a unit's file in the folder of its stage."""
    return folder / f"unit-{number:05d}{kind}"


def write_unit(folder: Path, number: int, images: Tensor, places: Tensor) -> None:
    """Write the file of a unit atomically; the file names its stage and its number.

    Args:
        folder: of the stage.
        number: of the unit, from 0.
        images: (n, C, H, W) pixels.
        places: (n,) numbers of the images.
    """
    found = {"images": images, "places": places}
    write_tensors(unit_file(folder, number), found, {"of": f"{folder.name}/{number}"})


def read_units(folder: Path) -> Tensor | Shards:
    """Return the images of all units (N, C, H, W), in pixels, sorted by class; above 4 GiB they stay in files.

    Raises:
        InputError: a file is damaged, or belongs to another stage.
    """
    paths = sorted(folder.glob("unit-*.safetensors"))
    places = torch.cat([_places(path, number) for number, path in enumerate(paths)])
    if not torch.equal(places.sort().values, torch.arange(len(places))):
        raise InputError(f"the units in {folder} do not hold each image once; delete that folder to have it made anew")
    images = Shards(paths, places.argsort())
    return images if 4 * images.numel() > LIMIT else images[:]


def _places(path: Path, number: int) -> Tensor:
    """Return the numbers of the images in the file of a unit, (n,).

    Raises:
        InputError: the file is damaged, or belongs to another stage.
    """
    found, facts = read_tensors(path, only=["places"])
    owner = f"{path.parent.name}/{number}"
    if facts.get("of", owner) != owner:  # files of earlier versions lack this field
        raise InputError(f"{path} is of another run ({facts['of']}); delete it to have it made anew")
    return found["places"]
