"""Pictures of more than eight bits, grey ones among others, and files that are none: read as they are, or refused."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.pictures import decode_pictures, read_all_pictures, read_pictures
from distill.errors import InputError
from tests.unit.test_image_files import deep_png

DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000


def saved(path: Path, image: Image.Image | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_pictures_of_16_bits_keep_them(ending: str, tmp_path: Path) -> None:
    """They were clipped at 255 of 65,535: white."""
    expected = torch.from_numpy(DEEP.astype(np.float32))[None] / 65535
    path = saved(tmp_path / "a" / f"0.{ending}", Image.fromarray(DEEP))
    assert torch.equal(read_all_pictures([path])[0], expected)
    assert torch.equal(decode_pictures([path.read_bytes()], "it")[0], expected)
    saved(tmp_path / "b" / "0.png", Image.fromarray((DEEP // 257).astype(np.uint8)))
    grey = read_pictures(tmp_path, ("a", "b"), 1, (1, 8, 8))
    assert torch.equal(grey[0], expected)
    assert (grey[0] - grey[1]).abs().max() < 1 / 255
    assert torch.equal(read_pictures(tmp_path, ("a", "b"), 1, (3, 8, 8)), grey.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("kind", ["i4", "f4"])
def test_pictures_whose_bits_would_be_lost_are_refused(kind: str, tmp_path: Path) -> None:
    plain = saved(tmp_path / "a" / "0.png", Image.new("L", (8, 8)))
    path = saved(tmp_path / "b" / "0.tif", Image.fromarray(DEEP.astype(kind) * 99))
    line = r"0\.tif cannot be read as an image \(more than 8 bits per channel are not read in TIFF images of this kind"
    for read in (
        lambda: read_all_pictures([plain, path]),
        lambda: read_pictures(tmp_path, ("a", "b"), 1, (1, 8, 8)),
        lambda: decode_pictures([plain.read_bytes(), path.read_bytes()], "it"),
    ):
        with pytest.raises(InputError, match=line if read.__code__.co_names[0] != "decode_pictures" else "it, row 1"):
            read()


def test_pictures_of_16_bits_keep_their_colours(tmp_path: Path) -> None:
    """They were refused."""
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    path = saved(tmp_path / "0.png", deep_png(pixels))
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
    assert torch.equal(read_all_pictures([path])[0], expected)
    assert torch.equal(decode_pictures([path.read_bytes()], "it")[0], expected)


def test_one_picture_with_colours_makes_all_of_them_rgb(tmp_path: Path) -> None:
    """The first one alone said so, and the colours of the others were lost."""
    grey = saved(tmp_path / "0.png", Image.new("L", (8, 8), 7))
    colour = saved(tmp_path / "1.png", Image.new("RGB", (8, 8), (255, 0, 0)))
    for found in (read_all_pictures([grey, colour]), decode_pictures([grey.read_bytes(), colour.read_bytes()], "it")):
        assert found[1, :, 0, 0].tolist() == [1, 0, 0]
        assert found[0, :, 0, 0].tolist() == pytest.approx([7 / 255] * 3)
    with pytest.raises(InputError, match=r"1\.png cannot be read as an image \(it has colours, and the images of the"):
        read_pictures(folder_of(tmp_path, grey, colour), ("a", "b"), 1, (1, 8, 8))


def folder_of(root: Path, *files: Path) -> Path:
    for name, file in zip("ab", files, strict=True):
        saved(root / "set" / name / file.name, file.read_bytes())
    return root / "set"


def test_what_is_no_regular_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to("/dev/zero")
    for name in ("0.png", "1.png"):
        with pytest.raises(InputError, match=r"cannot be read as an image \(it is a .*, not a regular file\)"):
            read_all_pictures([tmp_path / name])


def test_a_picture_of_more_pixels_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    with pytest.raises(InputError, match="row 0 cannot be read as an image") as error:
        decode_pictures([out.getvalue()], "it")
    assert "\n" not in str(error.value)
