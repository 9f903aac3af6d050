from itertools import combinations

import numpy as np
import pytest

from d3m_assets.evaluation.baselines.k_center import k_center


def test_k_center_is_farthest_first_and_within_twice_the_best_radius(points):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)

    def radius(centres):
        return distances[:, list(centres)].min(1).max()

    best = min(radius(centres) for centres in combinations(range(12), 4))
    for seed in range(5):
        chosen = k_center(points, 4, seed)
        for step in range(1, 4):
            gaps = distances[:, chosen[:step]].min(1)
            assert gaps[chosen[step]] == pytest.approx(gaps.max())
        assert radius(chosen) <= 2 * best + 1e-6
    assert len({int(k_center(points, 1, seed)[0]) for seed in range(20)}) > 3
