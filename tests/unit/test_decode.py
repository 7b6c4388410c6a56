"""A file of each kind, made here, and the exact pixels that every reader gets from it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data import decode as module
from distill.data.decode import as_bytes, decode, decode_file, header, scaled
from distill.data.image_files import ImageFiles
from distill.data.pictures import decode_pictures, read_all_pictures, read_pictures
from tests.unit.test_image_files import deep_png, encoded

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
DEEP_GREY = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (8, 8, 3), dtype=np.uint16)
DEEP_ALPHA = RNG.integers(0, 65536, (8, 8, 1), dtype=np.uint16)
INDICES = RNG.integers(0, 5, (8, 8), dtype=np.uint8)
PALETTE = RNG.integers(0, 256, (5, 3), dtype=np.uint8)
FLAT = np.full((8, 8), 96, np.uint8)  # survives JPEG


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def stacked(*bands: np.ndarray) -> np.ndarray:
    return np.concatenate([band if band.ndim == 3 else band[..., None] for band in bands], 2)


def paletted() -> Image.Image:
    image = Image.fromarray(INDICES).convert("L")
    image.putpalette(PALETTE.tobytes())
    return image


def turned(pixels: np.ndarray, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(Image.fromarray(pixels), kind, exif=exif)


def deep_tiff(pixels: np.ndarray, order: str = "<", compressed: bool = False, planes: int = 1) -> bytes:
    """Make a TIFF of 16 bits a channel (H, W, 3 or 4), which Pillow does not write of colours."""
    height, width, bands = pixels.shape
    body = pixels.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if compressed else body
    tags = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [16] * bands),
        (259, 3, [8 if compressed else 1]),
        (262, 3, [2]),
        (273, 4, [8]),
        (277, 3, [bands]),
        (278, 3, [height]),
        (279, 4, [len(body)]),
        (284, 3, [planes]),
        *([(338, 3, [2])] if bands == 4 else []),
    ]
    body += b"\0" * (len(body) % 2)
    directory, beyond = struct.pack(f"{order}H", len(tags)), b""
    end = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            field, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + data
        else:
            field = data.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + field
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return start + body + directory + b"\0" * 4 + beyond


def frames(kind: str) -> bytes:
    colours = [Image.fromarray(pixels) for pixels in (COLOUR, 255 - COLOUR)]
    first = paletted() if kind == "GIF" else colours[0]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(first, kind, save_all=True, append_images=colours[1:], **lossless)


def inks() -> bytes:
    return encoded(Image.fromarray(stacked(COLOUR, ALPHA), "CMYK"), "TIFF")


def of_inks() -> np.ndarray:
    """Pillow's rule: (255 - ink) scaled by (255 - black)."""
    inks, black = 255 - COLOUR.astype(int), 255 - ALPHA.astype(int)[..., None]
    product = inks * black + 128
    return ((product + (product >> 8)) >> 8).astype(np.uint8)


TAKEN = PALETTE[INDICES]
KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "grey": (lambda: encoded(Image.fromarray(GREY), "PNG"), rgb(GREY)),
    "bits": (lambda: encoded(Image.fromarray(GREY > 99), "PNG"), rgb(np.where(GREY > 99, 255, 0).astype(np.uint8))),
    "grey and alpha": (lambda: encoded(Image.fromarray(stacked(GREY, ALPHA), "LA"), "PNG"), rgb(GREY)),
    "colour": (lambda: encoded(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "colour and alpha": (lambda: encoded(Image.fromarray(stacked(COLOUR, ALPHA)), "PNG"), COLOUR),
    "one colour transparent": (lambda: encoded(Image.fromarray(COLOUR), "PNG", transparency=(1, 2, 3)), COLOUR),
    "palette": (lambda: encoded(paletted(), "PNG"), TAKEN),
    "transparent palette": (lambda: encoded(paletted(), "PNG", transparency=bytes([0, 9, 255, 0, 70])), TAKEN),
    "cmyk": (inks, of_inks()),
    "grey jpeg": (lambda: encoded(Image.fromarray(FLAT), "JPEG"), rgb(FLAT)),
    "bmp": (lambda: encoded(Image.fromarray(COLOUR), "BMP"), COLOUR),
    "ppm": (lambda: encoded(Image.fromarray(COLOUR), "PPM"), COLOUR),
    "pgm of 4 levels": (lambda: b"P5 8 8 3\n" + (GREY // 64).tobytes(), rgb(GREY // 64 * 85)),
    "tiff": (lambda: encoded(Image.fromarray(COLOUR), "TIFF"), COLOUR),
    "webp": (lambda: encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR),
    "frames of a gif": (lambda: frames("GIF"), TAKEN),
    "frames of a png": (lambda: frames("PNG"), COLOUR),
    "frames of a webp": (lambda: frames("WEBP"), COLOUR),
    "frames of a tiff": (lambda: frames("TIFF"), COLOUR),
    "deep grey": (lambda: encoded(Image.fromarray(DEEP_GREY), "PNG"), rgb(DEEP_GREY)),
    "deep grey tiff": (lambda: encoded(Image.fromarray(DEEP_GREY), "TIFF"), rgb(DEEP_GREY)),
    "deep grey tiff, compressed": (
        lambda: encoded(Image.fromarray(DEEP_GREY), "TIFF", compression="tiff_lzw"),
        rgb(DEEP_GREY),
    ),
    "deep grey tiff, white is zero": (
        lambda: encoded(Image.fromarray(DEEP_GREY), "TIFF", tiffinfo={262: 0}),
        rgb(65535 - DEEP_GREY),
    ),
    "deep pgm": (lambda: b"P5 8 8 65535\n" + DEEP_GREY.astype(">u2").tobytes(), rgb(DEEP_GREY)),
    "deep pgm of 1,024 levels": (
        lambda: b"P5 8 8 1023\n" + (DEEP_GREY // 64).astype(">u2").tobytes(),
        rgb(np.rint(DEEP_GREY // 64 / 1023 * 65535).astype(np.uint16)),
    ),
    "deep grey and alpha": (lambda: deep_png(stacked(DEEP_GREY, DEEP_ALPHA)), rgb(DEEP_GREY)),
    "deep colour": (lambda: deep_png(DEEP_COLOUR), DEEP_COLOUR),
    "deep colour and alpha": (lambda: deep_png(stacked(DEEP_COLOUR, DEEP_ALPHA)), DEEP_COLOUR),
    "deep ppm": (lambda: b"P6 8 8 65535\n" + DEEP_COLOUR.astype(">u2").tobytes(), DEEP_COLOUR),
    "deep ppm of 1,024 levels": (
        lambda: b"P6 8 8 1023\n" + (DEEP_COLOUR // 64).astype(">u2").tobytes(),
        np.rint(DEEP_COLOUR // 64 / 1023 * 65535).astype(np.uint16),
    ),
    **{
        f"deep colour tiff {order}{' compressed' * compressed}{' with alpha' * alpha}": (
            lambda order=order, compressed=compressed, alpha=alpha: deep_tiff(
                stacked(DEEP_COLOUR, DEEP_ALPHA) if alpha else DEEP_COLOUR, order, compressed
            ),
            DEEP_COLOUR,
        )
        for order in "<>"
        for compressed in (False, True)
        for alpha in (False, True)
    },
}
ONE_CHANNEL = {kind for kind in KINDS if any(word in kind for word in ("grey", "bits", "pgm"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_exact_pixels(kind: str) -> None:
    data, expected = KINDS[kind][0](), KINDS[kind][1]
    found = decode(data)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    found += 1  # writable
    assert header(io.BytesIO(data)) == (8, 8, kind in ONE_CHANNEL)


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    """A folder of images, published pictures, bytes of a table, and pictures that are read back."""
    data, pixels = KINDS[kind][0](), KINDS[kind][1]
    path = tmp_path / "set" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    channels = 1 if kind in ONE_CHANNEL else 3
    white = 255 if pixels.dtype == np.uint8 else 65535
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / white
    files = ImageFiles(np.array([os.fsencode(path)]), 8, "square")
    assert torch.equal(files[0], expected)
    assert torch.equal(read_all_pictures([path])[0], expected[:channels])
    assert torch.equal(decode_pictures([data], "it")[0], expected[:channels])
    assert torch.equal(read_pictures(tmp_path / "set", ("a",), 1, (3, 8, 8))[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("fast", [True, False])
def test_images_are_upright(orientation: int, kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brightest corner of the stored picture is where the standard (CIPA DC-008, table 6) puts it."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255  # row 0, column 0
    stored[:8, 24:] = 100  # row 0, last column
    monkeypatch.setattr(module, "_fast_decoder", module._fast_decoder if fast else lambda: None)
    found = decode(turned(stored, kind, orientation))
    corners = {"top left": (4, 4), "top right": (4, -4), "bottom left": (-4, 4), "bottom right": (-4, -4)}
    seen = {name: int(found[place][0]) for name, place in corners.items()}
    first_row = ["top", "top", "bottom", "bottom", "left", "right", "right", "left"][orientation - 1]
    first_column = ["left", "right", "right", "left", "top", "top", "bottom", "bottom"][orientation - 1]
    bright = f"{first_row} {first_column}" if orientation < 5 else f"{first_column} {first_row}"
    assert found.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    assert max(seen, key=seen.__getitem__) == bright
    (second,) = [name for name, value in seen.items() if 60 < value < 140]
    assert first_row in second
    assert first_column not in second


def test_deep_images_are_upright_too() -> None:
    data = deep_png(DEEP_COLOUR[:4])
    exif = Image.Exif()
    exif[0x112] = 6
    head = 8 + 25
    body = b"eXIf" + exif.tobytes()[6:]
    data = data[:head] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[head:]
    assert np.array_equal(decode(data), np.rot90(DEEP_COLOUR[:4], -1))


def test_damaged_exif_turns_nothing() -> None:
    data = bytearray(turned(rgb(FLAT), "JPEG", 6))
    at = data.index(b"Exif\0\0") + 6
    data[at : at + 8] = b"garbage!"
    assert np.array_equal(decode(bytes(data)), rgb(FLAT))


REFUSED = {
    "planes apart": (lambda: deep_tiff(DEEP_COLOUR, planes=2, compressed=True), "."),
    "whole numbers of 32 bits": (
        lambda: encoded(Image.fromarray(DEEP_GREY.astype("i4")), "TIFF"),
        "more than 8 bits per channel are not read in TIFF images of this kind",
    ),
    "floats": (lambda: encoded(Image.fromarray(DEEP_GREY.astype("f4")), "TIFF"), "more than 8 bits per channel"),
    "plain text of deep colours": (
        lambda: b"P3 1 1 1023\n1 2 3\n",
        "more than 8 bits per channel are not read in PPM",
    ),
    "deep ppm cut short": (lambda: b"P6 8 8 65535\n" + bytes(300), "buffer is smaller"),
    "programs": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "cannot identify"),
    "nothing": (lambda: b"", "it is empty"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_lose_bits_or_is_no_image_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(REFUSED[kind][0]())
    with pytest.raises(Exception, match=REFUSED[kind][1]):
        decode_file(str(path))


def test_scales() -> None:
    """Every value, as torch divides it: sets that were read before keep every bit."""
    bytes_, words = np.arange(256, dtype=np.uint8), np.arange(65536, dtype=np.uint16)
    assert torch.equal(torch.from_numpy(scaled(bytes_)), torch.arange(256).float().div_(255))
    assert torch.equal(torch.from_numpy(scaled(words)), torch.arange(65536).float().div_(65535))
    assert np.array_equal(as_bytes(words), np.rint(words / 257).astype(np.uint8))
    assert as_bytes(bytes_) is bytes_
