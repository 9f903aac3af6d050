"""Arrays of images with their labels: what classifiers are trained and evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from d3m_assets.errors import DatasetError

Split = Literal["train", "validation", "test", "synthetic"]


@dataclass(frozen=True)
class LabelledImages:
    """Images with one label each.

    Attributes:
        images: uint8 ``[N, H, W, C]`` with C 1 or 3.
        labels: int64 ``[N]``, position of the class in the table of classes, 0 to K-1.
        split: Where the images come from. Students refuse to train on "test".
        probabilities: Soft labels, float ``[N, K]``, each row a distribution over the classes; None where the
            labels are hard. Students train on them in place of ``labels``.

    Raises:
        DatasetError: If shapes, types or the two lengths do not fit.
    """

    images: np.ndarray
    labels: np.ndarray
    split: Split = "train"
    probabilities: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Reject arrays that could only fail later, far from their cause."""
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
            raise DatasetError(
                f"{self.split} images are {self.images.dtype} of shape {shape}; expected uint8 "
                "[N, H, W, 1 or 3]. Load them with d3m_assets.datasets.images.load_images."
            )
        if self.labels.shape != shape[:1] or not np.issubdtype(self.labels.dtype, np.integer):
            raise DatasetError(
                f"{self.split} labels are {self.labels.dtype} of shape {self.labels.shape} for {shape[0]} "
                "images; give one integer class position an image."
            )
        if shape[0] == 0:
            raise DatasetError(f"the {self.split} images are empty; a student needs at least one image.")
        soft = self.probabilities
        if soft is not None and not (
            soft.ndim == 2
            and len(soft) == shape[0]
            and np.issubdtype(soft.dtype, np.floating)
            and (soft >= 0).all()
            and np.allclose(soft.sum(axis=1, dtype=np.float64), 1, atol=1e-2)
        ):
            raise DatasetError(
                f"soft labels of the {self.split} images are {soft.dtype} of shape {soft.shape} for {shape[0]} "
                "images; give each image probabilities of all classes that add up to 1."
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def subset(self, which: np.ndarray) -> LabelledImages:
        """Some of the images with their labels, hard and soft.

        Args:
            which: Boolean ``[N]``, or positions.
        """
        soft = None if self.probabilities is None else self.probabilities[which]
        return replace(self, images=self.images[which], labels=self.labels[which], probabilities=soft)

    def resized(self, size: int, channels: int) -> LabelledImages:
        """Return the same images as squares of ``size`` px with ``channels`` channels.

        The shorter side is kept whole, the longer one cropped at its centre; resizing is PIL bicubic, which
        also low-passes when it shrinks.
        """
        resized = resize_to_square(self.images, size, channels)
        return self if resized is self.images else replace(self, images=resized)


def resize_to_square(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Make squares of images, as :meth:`LabelledImages.resized` does; those that fit already are returned as they are.

    Args:
        images: uint8 ``[N, H, W, 1 or 3]``.
        size: Side in px.
        channels: 1 or 3.

    Returns:
        uint8 ``[N, size, size, channels]``.
    """
    if images.shape[1:] == (size, size, channels):
        return images
    from PIL import Image

    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    mode = "L" if channels == 1 else "RGB"
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in zip(resized, images[:, top : top + side, left : left + side], strict=True):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert(mode)
        row[:] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).reshape(row.shape)
    return resized
