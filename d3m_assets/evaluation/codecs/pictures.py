"""Picture files by Pillow: the images of a class side by side on one sheet, so that they share its headers and tables."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from d3m_assets.errors import StageError

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WebP lossless": {"lossless": True, "quality": 100, "method": 6, "exact": True},
}
"""File formats that keep every pixel, with Pillow's options."""
LOSSY: dict[str, dict[str, Any]] = {
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "subsampling": "4:2:0", "max_threads": 1},
    "JPEG": {"optimize": True, "progressive": True},
}
"""File formats with a quality."""
_LARGEST_SIDE = 16_000
"""Of a sheet in px; WebP ends at 16,383."""


def available(name: str) -> bool:
    """Whether this Pillow writes a format."""
    from PIL import features

    feature = {"AVIF": "avif", "WebP": "webp", "WebP lossless": "webp"}.get(name)
    return feature is None or bool(features.check(feature))


def available_formats() -> list[str]:
    """The file formats that this Pillow writes, with loss or without: what can be chosen depends on it."""
    return [name for name in (*LOSSLESS, *LOSSY) if available(name)]


def fits_on_sheet(count: int, height: int, width: int) -> bool:
    """Whether so many images of a size fit on one sheet."""
    columns = math.ceil(math.sqrt(count))
    return columns * width <= _LARGEST_SIDE and math.ceil(count / columns) * height <= _LARGEST_SIDE


def encode_sheet(images: np.ndarray, name: str, quality: int | None = None) -> bytes:
    """One file with all images.

    Args:
        images: uint8 ``[N, H, W, C]``, at least one.
        name: Of :data:`LOSSLESS` or :data:`LOSSY`.
        quality: Of a lossy format, 0 to 100.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    sheet = np.zeros((math.ceil(n / columns) * height, columns * width, channels), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    if name not in ("PNG", "JPEG"):
        picture = picture.convert("RGB")
    options = LOSSLESS.get(name) or {**LOSSY[name], "quality": quality}
    file = io.BytesIO()
    picture.save(file, name.split()[0], **options)
    return file.getvalue()


def decode_sheet(data: bytes, name: str, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The images of :func:`encode_sheet`.

    Args:
        data: The file.
        name: Of its format; it is opened as no other.
        count: Number of images N.
        shape: Height, width and channels of each.

    Raises:
        StageError: The file is damaged, or of other images.
    """
    height, width, channels = shape
    columns = math.ceil(math.sqrt(count))
    size = columns * width, math.ceil(count / columns) * height
    try:
        with Image.open(io.BytesIO(data), formats=(name.split()[0].upper(),)) as file:
            if file.size != size:  # before it is decoded: the header of a few bytes may name any size
                raise StageError(f"a sheet of {file.size} px does not hold {count} images of {height} x {width}")
            sheet = np.asarray(file.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise StageError(f"a sheet of {count} coded images cannot be decoded: {error}; encode them again") from None
    cells = sheet.reshape(-1, height, columns, width, channels).swapaxes(1, 2).reshape(-1, height, width, channels)
    return cells[:count].copy()
