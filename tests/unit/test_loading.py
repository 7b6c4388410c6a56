"""Batches for a teacher from images in files: torchvision's crops, whoever decodes them, and damage in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from distill.data import ImageSet
from distill.data.image_files import ImageFiles
from distill.errors import InputError
from distill.runs.run import Run
from sre2l import loading
from sre2l.crops import draw_boxes
from sre2l.loading import batches
from sre2l.precision import Compute
from sre2l.squeeze import Squeeze, squeeze

SIZE = 16


@pytest.fixture
def real(tmp_path: Path) -> ImageSet:
    """Eleven JPEG files of different sizes, 5 of one class, 6 of another."""
    paths = []
    for number in range(11):
        few = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(few).resize((30 + number, 24 + 2 * number), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path).encode())
    files = ImageFiles(np.array(paths), SIZE, "crop")
    labels = torch.arange(2).repeat_interleave(torch.tensor([5, 6]))
    return ImageSet("folder", files, labels, ("a", "b"), (0.5,) * 3, (0.25,) * 3)


def epoch_of(real: ImageSet, folder: Path, *, workers: int = 0, begin: int = 0, augment: str = "resized_crop") -> list:
    run = Run(folder / "run", None, workers=workers)
    return list(batches(real, augment, True, 4, 3, begin, run))


def test_workers_and_interruptions_change_nothing(real: ImageSet, tmp_path: Path) -> None:
    whole = epoch_of(real, tmp_path)
    assert [tuple(x.shape) for x, _ in whole] == [(4, 3, SIZE, SIZE)] * 2  # an incomplete third is left out
    for again in (epoch_of(real, tmp_path, workers=2), [whole[0], *epoch_of(real, tmp_path, workers=1, begin=1)]):
        for (x, y), (x_again, y_again) in zip(whole, again, strict=True):
            assert torch.equal(x, x_again)
            assert torch.equal(y, y_again)
    assert not torch.equal(whole[0][0], whole[1][0])


def test_processes_take_the_parts_of_one(real: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch_of(real, tmp_path)
    monkeypatch.setattr(loading, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(loading, "rank", lambda rank=rank: rank)
        parts.append(epoch_of(real, tmp_path))
    for (x, y), *halves in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([half for half, _ in halves]))
        assert torch.equal(y, torch.cat([classes for _, classes in halves]))


def reference(real: ImageSet, run: Run) -> list[Tensor]:
    """What torchvision makes of the same draws: the whole file, cropped, resized with antialias."""
    order = torch.randperm(11, generator=run.generator("squeeze", "order", 3))[:8]
    seeds = torch.randint(2**62, (2, 4), generator=run.generator("squeeze", "crop", 3)).flatten()
    made = []
    for index, seed in zip(order.tolist(), seeds.tolist(), strict=True):
        image = TF.pil_to_tensor(Image.open(real.images.paths[index].decode()))
        generator = torch.Generator().manual_seed(seed)
        top, left, height, width = draw_boxes(1, *image.shape[1:], 0.08, generator)[0].tolist()
        crop = TF.resize(image[:, top : top + height, left : left + width], [SIZE, SIZE], antialias=True)
        made.append(crop.flip(2) if torch.rand(1, generator=generator) < 0.5 else crop)
    return made


def test_crops_are_of_the_whole_file(real: ImageSet, tmp_path: Path) -> None:
    ours = torch.cat([x for x, _ in epoch_of(real, tmp_path)])
    torch.testing.assert_close(ours, torch.stack(reference(real, Run(tmp_path / "run", None))) / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", ["padded_crop", "none"])
def test_other_crops_are_of_the_view(augment: str, real: ImageSet, tmp_path: Path) -> None:
    order = torch.randperm(11, generator=Run(tmp_path / "run", None).generator("squeeze", "order", 3))
    seen = real.images[order[:8]]
    ours = torch.cat([x for x, _ in epoch_of(real, tmp_path, augment=augment)])
    if augment == "none":
        same = (ours == seen).flatten(1).all(1)
        assert (same | (ours == seen.flip(3)).flatten(1).all(1)).all()
        assert 0 < same.sum() < 8
    else:  # every pixel is one of the image's, or padding
        for x, image in zip(ours, seen, strict=True):
            colours = {tuple(pixel) for pixel in image.flatten(1).T.tolist()} | {(0.0, 0.0, 0.0)}
            assert {tuple(pixel) for pixel in x.flatten(1).T.tolist()} <= colours


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line(workers: int, real: ImageSet, tmp_path: Path) -> None:
    order = torch.randperm(11, generator=Run(tmp_path / "run", None).generator("squeeze", "order", 3))
    path = Path(real.images.paths[order[5]].decode())
    path.write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(InputError) as raised:
        epoch_of(real, tmp_path, workers=workers)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path} cannot be read as an image (")
    assert "--damaged skip" in str(raised.value)


def test_a_teacher_is_squeezed_from_files(real: ImageSet, tmp_path: Path) -> None:
    teachers = []
    for workers in (0, 2):
        run = Run(tmp_path / f"run{workers}", None, stages=tmp_path / f"stages{workers}", workers=workers)
        config = Squeeze(epochs=2, batch_size=4, lr=0.05)
        teacher, _ = squeeze(real, "convnet:width=4,depth=2,norm=batch", config, Compute(), run)
        teachers.append(torch.cat([tensor.flatten().float() for tensor in teacher.network.state_dict().values()]))
    assert torch.equal(*teachers)
