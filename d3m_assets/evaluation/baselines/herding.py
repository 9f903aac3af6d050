"""Herding: real images whose mean is that of their class."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages


def herding(features: np.ndarray, count: int, *, mean: np.ndarray | None = None) -> np.ndarray:
    """Choose images whose mean is as near as can be to that of all, one after the other.

    Greedy choice of Rebuffi et al., "iCaRL" (arXiv 1611.07725, algorithm 4), after Welling, "Herding dynamical weights to
    learn" (ICML 2009), without replacement.

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.
        mean: Float ``[F]`` to come near to; None: that of ``features``.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, in the order chosen.
    """
    points = features.astype(np.float64)
    mean = points.mean(axis=0) if mean is None else mean
    squares, total = (points**2).sum(axis=1), np.zeros(points.shape[1])
    free = np.ones(len(points), bool)
    selected = np.empty(min(count, len(points)), np.int64)
    for step in range(len(selected)):
        # |(step + 1) * mean - total - x|², without what is the same for every x.
        score = squares - 2 * points @ ((step + 1) * mean - total)
        selected[step] = np.argmin(np.where(free, score, np.inf))
        free[selected[step]] = False
        total += points[selected[step]]
    return selected


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    return real.images(class_id)[herding(real.features(class_id), count)]


HERDING = Baseline("herding", "real images by herding", _images, needs_teacher=True)
