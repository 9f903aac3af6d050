import numpy as np
import pytest

from d3m_assets.evaluation.baselines.k_means import k_means


def test_k_means_takes_one_image_of_each_cluster_near_its_middle():
    draw = np.random.default_rng(0)
    middles = np.array([[0, 0], [50, 0], [0, 50]])
    points = np.concatenate([m + draw.normal(size=(n, 2)) for m, n in zip(middles, (20, 10, 5), strict=True)])
    chosen = k_means(points, 3, seed=1)
    assert [int(i >= 20) + int(i >= 30) for i in chosen] == [0, 1, 2]  # the largest cluster first
    for cluster, i in zip((points[:20], points[20:30], points[30:]), chosen, strict=True):
        assert np.linalg.norm(points[i] - cluster.mean(0)) == pytest.approx(
            np.linalg.norm(cluster - cluster.mean(0), axis=1).min()
        )
