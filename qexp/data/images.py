"""One image file: decoded, resized and cut to the size that a network takes."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from qexp.errors import DataError

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, struct.error)
"""What Pillow raises for files that are truncated, damaged or no images."""


def decode(file: Path, channels: int) -> Image.Image:
    """Read one image file whole, as RGB (3 channels) or grey (1), whatever its ending says it is.

    Greys of 16 bits are scaled to 8. The pixels are taken as they are stored: an EXIF orientation is not applied,
    as in the papers' preparation. ImageNet has CMYK files and a PNG called .JPEG among its photographs, and files
    whose EXIF data are damaged.

    Raises:
        DataError: the file is not an image, is truncated, cannot be read, or has pixels of 32 bits, whose scale
            nobody states.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata, which nobody reads here
            with Image.open(file) as image:
                return _eight_bits(image, file).convert("RGB" if channels == 3 else "L")
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be decoded ({error}); replace or remove it.") from error


def _eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Return an image whose values `convert` understands: of more than 8 bits it would cut all off at 255."""
    # Of PNG and PPM files "I" is 16 bits as well, to some versions of Pillow.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{file}: its pixels are of mode {image.mode} (32 bits); save it with 8 or 16 bits.")
    return image


def resize_shorter(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize (bilinear, antialiased) so that the image just covers height x width, keeping its proportions."""
    factor = max(height / image.height, width / image.width)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def centre(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut height x width out of the middle."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def pixels(image: Image.Image) -> np.ndarray:
    """Return the image as uint8 (height, width, channels)."""
    array = np.asarray(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array
