"""EL2N: the real images that a teacher is least wrong about."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages


def el2n(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How wrong a classifier is about each image: the norm of probabilities minus one-hot label.

    Paul et al., "Deep learning on a data diet" (arXiv 2107.07075), here of one trained teacher instead of
    several networks early in training.

    Args:
        probabilities: float ``[N, K]``.
        labels: Class positions ``[N]``.

    Returns:
        float64 ``[N]``, 0 (certain and right) to √2.
    """
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(labels)), labels] -= 1
    return np.linalg.norm(errors, axis=1)


def easiest(errors: np.ndarray, count: int) -> np.ndarray:
    """Choose the images with the lowest scores.

    With few images the easy ones teach most (Sorscher et al., "Beyond neural scaling laws", arXiv 2206.14486).

    Args:
        errors: Scores ``[N]``.
        count: Images wanted; N or more gives all.

    Returns:
        Positions, int64 ``[min(count, N)]``, easiest first, the earlier of equals.
    """
    return np.argsort(errors, kind="stable")[:count].astype(np.int64)


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    return real.images(class_id)[easiest(real.el2n_errors(class_id), count)]


EL2N = Baseline("el2n", "easiest real images (EL2N)", _images, needs_teacher=True)
