"""Image files of one class that are given by their paths, for use from a notebook."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d3m_assets.datasets.images import decode_image, read_bytes
from d3m_assets.datasets.source import ImageRecord
from d3m_assets.errors import DatasetError


@dataclass(frozen=True)
class LooseFiles:
    """Reads images wherever they are (:class:`~d3m_assets.datasets.source.ImageReader`)."""

    def read(self, image: ImageRecord) -> bytes:
        """Contents of an image file, exactly as they were when it was recorded.

        Raises:
            DatasetError: It has changed since.
            OSError: It cannot be read.
        """
        data = read_bytes(image.uri)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DatasetError(f"image {image.uri} has changed since it was recorded; record it again")
        return data


def records_of(paths: Sequence[str | Path]) -> tuple[ImageRecord, ...]:
    """Training images at some local paths.

    Raises:
        OSError: One cannot be read.
        ValueError: One is no image.
    """
    records = []
    for path in map(str, paths):
        data = read_bytes(path)
        image, mode = decode_image(data)
        digest = hashlib.sha256(data).hexdigest()
        records.append(ImageRecord(path, path, digest, len(data), image.width, image.height, mode, "train"))
    return tuple(records)
