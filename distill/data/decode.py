"""The decoder of image files: all other modules get pixels and header data from this module.

All formats of FORMATS are decoded to RGB, whatever the name of the file:

* At most 8 bits per channel: grey, colour, palette, YCbCr and CMYK are converted as by Pillow's `convert("RGB")`.
* 16 bits per channel: grey and colour in PNG, TIFF and PNM, with all bits. Pillow reads only one of the two bytes of a
  colour; the second byte is read with the opposite byte order. Other images of more than 8 bits are refused.
* Transparency is dropped: the colours below it become visible, as in torchvision's `ImageFolder`.
* EXIF orientation is applied, as in a viewer.
* Of several frames (GIF, APNG, WebP, TIFF, MPO) only the first is decoded.

JPEG is decoded by torchvision (libjpeg-turbo, 1.5 times as fast as Pillow); all other formats, and JPEG files that
torchvision refuses, by Pillow. Both give the same bytes, also for CMYK and grey. PNG is decoded by Pillow because
torchvision is not faster, and because torchvision 0.29 ends the whole process with a segmentation fault on many damaged
PNG files. The operator below torchvision.io is called directly, because torchvision.io warns since 0.29 that it will be
removed; without the operator, Pillow decodes all files.

Both decoders refuse a truncated file. For JPEG data damaged inside the file, libjpeg warns on standard error and
neither decoder refuses the file.
"""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from distill.runs.foreign import brief, open_regular

__all__ = ["FORMATS", "Header", "Paths", "all_grey", "as_bytes", "decode", "decode_file", "header", "reason", "scaled"]

Paths = Sequence[bytes | str] | np.ndarray
"""paths of files, as bytes or text; an array of paths takes a tenth of the memory of a list"""

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
"""Pillow's names of the decoded formats; other formats run programs on the file (EPS) or are not photographs"""

_JPEG = b"\xff\xd8\xff"
_RGB = 3
"""torchvision.io.ImageReadMode.RGB"""
_DEEP = ("PNG", "TIFF", "PPM")
"""formats of which images with 16 bits per channel are read"""
_SECOND_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA", "RGBX") for order, other in ("BL", "LB")
}
_TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""EXIF orientation -> (H, W, 3) as stored -> upright"""
_TIFF_PHOTOMETRIC, _TIFF_PLANES = 262, 284
"""numbers of TIFF tags"""


class Header(NamedTuple):
    """Data of an image file that are known before the pixels are decoded."""

    width: int
    """in pixels, before the EXIF orientation is applied"""
    height: int
    """in pixels, before the EXIF orientation is applied"""
    grey: bool
    """whether the image has one channel besides transparency; a palette counts as colour"""


def decode(data: bytes) -> np.ndarray:
    """Decode the bytes of an image file.

    Args:
        data: the whole file.

    Returns:
        (H, W, 3) RGB, writable: uint8, of which 255 is white, or uint16, of which 65,535 is white.

    Raises:
        Exception: of any kind (Pillow raises anything from SyntaxError to struct.error), where the file is not a whole
            image or has more than 8 bits a channel in a form that is not read; `reason` puts it in words.
    """
    decode_jpeg = _fast_decoder() if data.startswith(_JPEG) else None
    if decode_jpeg:
        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)
        except RuntimeError:
            pass  # Pillow decides whether the file is an image
        else:
            upright = pixels.permute(1, 2, 0).numpy()
            if b"Exif\0\0" in data or b"tiff:Orientation" in data:
                with _opened(io.BytesIO(data)) as image:
                    upright = _turned(upright, image)
            return upright
    if not data:
        raise ValueError("it is empty")
    with _opened(io.BytesIO(data)) as image:
        if _is_deep(image):
            pixels = _deep(data, image)
        else:
            pixels = np.array((image.convert("RGBA") if "transparency" in image.info else image).convert("RGB"))
        return pixels if image.format == "TIFF" else _turned(pixels, image)  # Pillow itself turns TIFF


def decode_file(path: bytes | str) -> np.ndarray:
    """Decode an image file.

    Returns:
        (H, W, 3) uint8 or uint16, as of `decode`.

    Raises:
        Exception: of any class, as in `decode`; OSError if the file cannot be read or is not a regular file.
    """
    with open_regular(path) as file:
        data = file.read()
    return decode(data)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Return decoded pixels, uint8 or uint16 of any shape, as float32 in [0, 1].

    >>> scaled(np.array([0, 51, 255], np.uint8)).tolist(), scaled(np.array([65535], np.uint16)).tolist()
    ([0.0, 0.20000000298023224, 1.0], [1.0])
    """
    return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Return decoded pixels, uint8 or uint16 of any shape, as uint8; 16 bits are rounded to the nearest 8-bit level.

    >>> as_bytes(np.array([0, 128, 129, 65535], np.uint16)).tolist()
    [0, 0, 1, 255]
    """
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def header(file: BinaryIO) -> Header:
    """Read the header of an image, without decoding the pixels.

    Args:
        file: an open file, at the first byte.

    Returns:
        size and colours.

    Raises:
        Exception: of any class, if the file is not an image.
    """
    with _opened(file) as image:
        return Header(*image.size, _is_grey(image))


def all_grey(paths: Paths) -> bool:
    """Return whether all images are grey according to their headers; the first image with colours ends the search.

    Files without a readable header are ignored here; decoding them raises an error with their names.
    """
    known = False
    for path in paths:
        try:
            with open_regular(path) as file:
                grey = header(file).grey
        except Exception:  # as in `header`
            continue
        if not grey:
            return False
        known = True
    return known


def reason(error: Exception) -> str:
    """Return why a file could not be decoded, in a few words on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    return brief(getattr(error, "strerror", None) or error) or type(error).__name__


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    return Image.open(file, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Return the FORMATS with which this Pillow was built."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _fast_decoder() -> Callable | None:
    """Return torchvision's operator (bytes, mode, apply EXIF orientation) -> (3, H, W), or None if it is missing."""
    import torchvision  # noqa: F401  (the import registers the operator)

    return getattr(torch.ops.image, "decode_jpeg", None)


def _turned(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Apply the EXIF orientation of the open image to stored pixels (H, W, 3); damaged EXIF data are ignored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's reader of EXIF raises anything from SyntaxError to struct.error
        return pixels
    return np.ascontiguousarray(_TURNED[orientation](pixels)) if orientation in _TURNED else pixels


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    """Return Pillow's names of the layouts of the stored pixels; known only before the pixels are loaded."""
    layouts = (tile[3] for tile in image.tile)
    return [layout if isinstance(layout, str) else str(layout[0]) for layout in layouts if layout]


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an open image has more than 8 bits per channel, which Pillow truncates or clips silently.

    Known only before the pixels are loaded. BGR;16 has 16 bits per pixel.
    """
    if image.mode.startswith(("I", "F")) or any(";16" in mode and mode != "BGR;16" for mode in _raw_modes(image)):
        return True
    return image.format == "PPM" and _pnm_white(image) > 255


def _is_grey(image: ImageFile.ImageFile) -> bool:
    """Return whether an open image has one channel besides transparency; a palette counts as colour."""
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
    return grey or any(mode.startswith("LA;16") for mode in _raw_modes(image))


def _pnm_white(image: ImageFile.ImageFile) -> int:
    """Return the largest pixel value from a PNM file's header; 255 if Pillow stores none."""
    args = image.tile[0][3]
    return args[1] if isinstance(args, tuple) and len(args) == 2 else 255


def _deep(data: bytes, image: ImageFile.ImageFile) -> np.ndarray:
    """Return the pixels of an open image with 16 bits per channel, (H, W, 3) uint16.

    Raises:
        ValueError: the layout of the bits is not supported.
    """
    modes = set(_raw_modes(image))
    mode = modes.pop() if len(modes) == 1 else ""
    tags = getattr(image, "tag_v2", {})
    if image.format in _DEEP and tags.get(_TIFF_PLANES, 1) == 1:
        if image.mode.startswith("I;16") and mode.startswith("I;16"):
            grey = np.array(image).astype(np.uint16)
            return _grey_to_rgb(65535 - grey if tags.get(_TIFF_PHOTOMETRIC) == 0 else grey)
        if image.format == "PPM" and image.mode == "I":
            return _grey_to_rgb(np.array(image).astype(np.uint16))  # Pillow scales to 65,535
        if image.format == "PPM" and image.tile[0][0] == "ppm":
            (width, height), white = image.size, _pnm_white(image)
            stored = np.frombuffer(data, ">u2", 3 * width * height, image.tile[0][2]).reshape(height, width, 3)
            return np.rint(np.minimum(stored / white, 1) * 65535).astype(np.uint16)
        if mode == "LA;16B":
            grey_and_alpha = _bytes_of(data, "RGBA").astype(np.uint16)  # two bytes per value, the higher byte first
            return _grey_to_rgb(grey_and_alpha[..., 0] * 256 + grey_and_alpha[..., 1])
        if mode.endswith(";16N"):  # libtiff: in the machine's byte order
            mode = mode[:-1] + ("L" if np.little_endian else "B")
        if mode in _SECOND_BYTE:
            first, second = (_bytes_of(data, each).astype(np.uint16) for each in (mode, _SECOND_BYTE[mode]))
            return (first * 256 + second)[..., :3]
    raise ValueError(f"more than 8 bits per channel are not read in {image.format} images of this kind: convert it")


def _bytes_of(data: bytes, raw_mode: str) -> np.ndarray:
    """Decode an image file as if its pixels had another layout: (H, W, bands) uint8."""
    with _opened(io.BytesIO(data)) as image:
        image.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *(tile.args or ())[1:]))
            for tile in image.tile
        ]
        return np.array(image)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)
