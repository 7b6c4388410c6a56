"""What image files say of themselves before they are decoded: whether they are grey, or have more than eight bits."""

from collections.abc import Sequence

from PIL import Image

from distill.runs.foreign import open_regular

__all__ = ["all_grey", "is_deep", "is_grey"]


def is_deep(image: Image.Image) -> bool:
    """Return whether an open image has more than eight bits a channel, which Pillow cuts or clips without a word.

    Only before its pixels are loaded is that known. BGR;16 is 16 bits a pixel.
    """
    raw = [str(tile[3]) for tile in image.tile]
    return image.mode.startswith(("I", "F")) or any(";16" in one and "BGR;16" not in one for one in raw)


def all_grey(paths: Sequence[bytes | str]) -> bool:
    """Return whether all images are grey by their headers; the first with colours ends the search.

    Files without a header that can be read have no say: who decodes them names them.
    """
    known = False
    for path in paths:
        try:
            with open_regular(path) as file, Image.open(file) as image:
                grey = is_grey(image)
        except Exception:  # Pillow raises anything from SyntaxError to struct.error
            continue
        if not grey:
            return False
        known = True
    return known


def is_grey(image: Image.Image) -> bool:
    """Return whether an open image has one channel, transparency aside; a palette has colours."""
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
