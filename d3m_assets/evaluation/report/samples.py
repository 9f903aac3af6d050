"""Example images of the report, as pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d3m_assets.evaluation.report.tables import MAX_CLASSES

if TYPE_CHECKING:
    from PIL import Image

IMAGES_PER_SAMPLE = 8
"""Of one class under one title."""
_TILE = 32
_MAX_TILE = 64


def sample_rows(samples: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class with a picture for each title; of many classes, the first :data:`MAX_CLASSES`.

    Args:
        samples: Title to class name to uint8 ``[N, H, W, C]``.
        class_names: The classes in their order.

    Returns:
        ``name``, and ``cells`` of ``title``, ``image`` (data URI; empty where there are no images) and ``alt``.
    """
    rows = []
    for name in class_names[:MAX_CLASSES]:
        cells = []
        for title, by_class in samples.items():
            images = by_class.get(name)
            if images is None or not len(images):
                cells.append({"title": title, "image": "", "alt": f"no {title} of class {name}"})
                continue
            images = images[:IMAGES_PER_SAMPLE]
            alt = f"{len(images)} × {title}, class {name}"
            cells.append({"title": title, "image": _sheet(images), "alt": alt})
        rows.append({"name": name, "cells": cells})
    return rows


def _sheet(images: np.ndarray, columns: int = 4) -> str:
    """Lay images out with transparent gaps between them, as a PNG data URI.

    Small images are enlarged by whole factors, so that their pixels stay visible and browsers need not guess.
    """
    from PIL import Image

    pictures = [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]
    height, width = images.shape[1:3]
    factor = max(1, _TILE // max(height, width))
    size = (width * factor, height * factor)
    if max(height, width) > _MAX_TILE:
        shrink = _MAX_TILE / max(height, width)
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        pictures = [p.resize(size, Image.Resampling.BICUBIC) for p in pictures]
    else:
        pictures = [p.resize(size, Image.Resampling.NEAREST) for p in pictures]
    # Always room for a full sheet: every cell of the page then shows its images at one scale.
    gap = max(1, size[0] // 16)
    rows = IMAGES_PER_SAMPLE // columns
    mode = "LA" if images.shape[3] == 1 else "RGBA"
    sheet = Image.new(mode, (columns * (size[0] + gap) - gap, rows * (size[1] + gap) - gap))
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert(mode), (i % columns * (size[0] + gap), i // columns * (size[1] + gap)))
    return _data_uri(sheet)


def picture(image: np.ndarray) -> str:
    """One image, uint8 ``[H, W, C]``, no wider than 64 px, as a PNG data URI."""
    from PIL import Image

    drawn = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    drawn.thumbnail((_MAX_TILE, _MAX_TILE))
    return _data_uri(drawn)


def _data_uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
