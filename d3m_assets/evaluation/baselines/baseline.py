"""What a baseline is: a way to make a training set of equal bytes from real training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


class RealImages(Protocol):
    """The training images of a dataset, class by class in the order of their hashes, and what models say of them."""

    def images(self, class_id: int) -> np.ndarray:
        """Images of a class at the dataset's stored size, uint8 ``[N, H, W, C]``."""

    def features(self, class_id: int) -> np.ndarray:
        """Features that the teacher sees in the images of a class, float ``[N, F]``."""

    def class_probabilities(self, class_id: int, images: np.ndarray) -> np.ndarray:
        """How likely the teacher takes images, uint8 ``[N, H, W, C]``, for a class: float ``[N]``."""

    def el2n_errors(self, class_id: int) -> np.ndarray:
        """Norm of the teacher's error on the images of a class, float ``[N]``; see :func:`~.el2n.el2n`."""

    def latents(self, class_id: int) -> np.ndarray:
        """Latents of the images of a class, float ``[N, C, h, w]``."""

    def decoded(self, latents: np.ndarray) -> np.ndarray:
        """Latents, float32 ``[N, C, h, w]``, as images of the dataset's stored size and channels, uint8."""


@dataclass(frozen=True)
class Baseline:
    """A training set of equal bytes made from real images.

    Attributes:
        name: In ``evaluation.baselines``.
        method: Of the row in tables.
        images: Makes the images of a class: from the real images, the class id, how many and the seed of the student to
            uint8 ``[min(count, N), H, W, C]``.
        split: "train" where they are real images, "synthetic" where they are composed.
        needs_teacher: Whether it asks the teacher.
        needs_foundation: Whether it asks the foundation model.
    """

    name: str
    method: str
    images: Callable[[RealImages, int, int, int], np.ndarray]
    split: Literal["train", "synthetic"] = "train"
    needs_teacher: bool = False
    needs_foundation: bool = False
