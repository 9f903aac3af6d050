"""k-means: the real image nearest to the centre of each cluster."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages


def k_means(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose the image nearest to the centre of each of ``count`` clusters (k-means++, Arthur & Vassilvitskii, 2007).

    Args:
        features: float ``[N, F]``.
        count: Images wanted; N or more gives all.
        seed: Draws the first centres.

    Returns:
        Distinct positions, int64 ``[min(count, N)]``, those of the largest clusters first.
    """
    points = features.astype(np.float64)
    count = min(count, len(points))
    labels, centres = clusters(points, count, seed)
    distance = ((points - centres[labels]) ** 2).sum(axis=1)
    sizes = np.bincount(labels, minlength=count)
    medoids = [
        int(members[np.argmin(distance[members])])
        for cluster in np.argsort(-sizes, kind="stable")
        if len(members := np.flatnonzero(labels == cluster))
    ]
    # Copies leave clusters empty; their places go to images that were not chosen.
    rest = np.setdiff1d(np.arange(len(points)), medoids)[: count - len(medoids)]
    return np.array([*medoids, *rest], np.int64)


def clusters(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each point, int ``[N]``, and centres, float ``[count, F]``, of points ``[N, F]``."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():  # one thread: sums round alike on every machine
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        found = KMeans(count, n_init=4, random_state=seed % 2**32).fit(points)
    return found.labels_, found.cluster_centers_


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    return real.images(class_id)[k_means(real.features(class_id), count, seed)]


K_MEANS = Baseline("k-means", "real images by k-means", _images, needs_teacher=True)
