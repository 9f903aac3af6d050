"""Random real images: what every result is compared with."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.baselines.baseline import Baseline, RealImages


def random_positions(n: int, count: int, class_id: int, seed: int) -> np.ndarray:
    """Random images of a class, without replacement, others for every seed.

    They depend on the seed, the class and its number of images only, and for one seed fewer images are part of more.

    Args:
        n: Images of the class.
        count: How many; ``n`` or more gives all.
        class_id: The class.
        seed: Of the student.

    Returns:
        Distinct positions, int64 ``[min(count, n)]``.
    """
    return np.random.default_rng([seed, class_id]).permutation(n)[:count]


def _images(real: RealImages, class_id: int, count: int, seed: int) -> np.ndarray:
    images = real.images(class_id)
    return images[random_positions(len(images), count, class_id, seed)]


RANDOM_REAL = Baseline("random", "random real images", _images)
