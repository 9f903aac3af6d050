"""k-center: real images such that none is far from those chosen."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages


def k_center(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose images such that none is far from all chosen: always the one farthest from those chosen so far.

    Gonzalez (1985), as the greedy choice of Sener & Savarese, "Active learning for convolutional neural networks: a
    core-set approach" (arXiv 1708.00489, algorithm 1).

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.
        seed: Draws the first image.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, in the order chosen.
    """
    points = features.astype(np.float64)
    selected = np.empty(min(count, len(points)), np.int64)
    nearest = np.full(len(points), np.inf)
    following = int(np.random.default_rng(seed).integers(len(points)))
    for step in range(len(selected)):
        selected[step] = following
        nearest = np.minimum(nearest, ((points - points[following]) ** 2).sum(axis=1))
        nearest[following] = -1  # never again, even where all that is left are copies
        following = int(np.argmax(nearest))
    return selected


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    return real.images(class_id)[k_center(real.features(class_id), count, seed)]


K_CENTER = Baseline("k-center", "real images by k-center", _images, needs_teacher=True)
