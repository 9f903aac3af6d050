import numpy as np
import pytest

from d3m_assets.evaluation.baselines.herding import herding


def test_herding_takes_at_every_step_what_brings_the_mean_nearest(points):
    chosen = herding(points, 6)
    assert len(set(chosen)) == 6
    mean = points.mean(0)
    for step in range(6):
        left = [i for i in range(12) if i not in chosen[:step]]
        gaps = {i: np.linalg.norm(mean - points[[*chosen[:step], i]].mean(0)) for i in left}
        assert gaps[chosen[step]] == pytest.approx(min(gaps.values()), abs=1e-6)
    drawn = np.random.default_rng(0)
    random = np.mean([np.linalg.norm(mean - points[drawn.permutation(12)[:6]].mean(0)) for _ in range(200)])
    assert np.linalg.norm(mean - points[chosen].mean(0)) < random / 2
