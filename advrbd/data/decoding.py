"""The bytes of an image file to upright RGB pixels.

This is where hostile bytes meet Pillow. The processes of ``decoders`` import this module, so it brings neither torch
nor numpy along before they are needed.
"""

import io

from PIL import (
    BmpImagePlugin,  # noqa: F401 - these seven register themselves; Pillow would import all its plugins to find one
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from advrbd.config import DecodingSettings
from advrbd.data.folder import OK, TOO_LARGE, UNREADABLE

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # not all of Pillow's: some start other programs


def decode(
    data: bytes, size: int | None, max_pixels: int = DecodingSettings.max_pixels
) -> tuple[Image.Image | None, str]:
    """An image in RGB, [size, size] pixels (as large as it is if ``size`` is None), and its status.

    There is no image unless the status is ``ok``. Of an animation it is the first picture, as it is for torchvision.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                return None, TOO_LARGE
            image = to_rgb(_upright(opened))
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            return image, OK
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        return None, TOO_LARGE
    except Exception:  # Pillow's decoders raise almost anything on hostile bytes; the row's status tells
        return None, UNREADABLE


def measure(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the header alone, None where there is no telling."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # it gets its status when it is decoded
        return None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; an image whose EXIF is junk loads everywhere else, so it is scanned as it is."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB, alpha dropped as torchvision does; of greys of more than 8 bits both readings, as
    ``_deep_grey``."""
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greys as integers or floats. Who trains on them scales them to 8 bits, or cuts them off at 255 as torchvision
    does, and sees another image: what the other reading hides would be a trigger that no scan sees. So red and green
    have the former and blue the latter, unless one of the two is black."""
    import numpy as np  # here, because it takes longer to import than Pillow, and few images need it

    values = np.asarray(image, dtype=np.float32)
    cut = np.nan_to_num(values, posinf=255).clip(0, 255).astype(np.uint8)
    finite = np.where(np.isfinite(values), values, 0)
    scaled = (finite * _grey_scale(image.mode, finite.max(initial=0))).clip(0, 255).astype(np.uint8)
    if scaled.max(initial=0) <= 1:
        scaled = cut
    elif cut.max(initial=0) <= 1:
        cut = scaled
    return Image.fromarray(np.stack([scaled, scaled, cut], axis=-1))


def _grey_scale(mode: str, top: float) -> float:
    """What brings greys up to ``top`` to 0..255; integers have no other depth than 16 bits here."""
    if mode == "F" and top <= 1:
        return 255
    if mode.startswith("I;16") or 255 < top <= 65535:
        return 255 / 65535
    return 1 if top <= 255 else 255 / top
