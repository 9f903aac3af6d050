import numpy as np

from d3m_assets.evaluation.baselines.el2n import easiest, el2n


def test_el2n_is_the_distance_from_the_label():
    soft = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], np.float32)
    scores = el2n(soft, np.array([0, 0, 0]))
    np.testing.assert_allclose(scores, [0, np.sqrt(2), np.sqrt(0.5)])
    assert easiest(scores, 2).tolist() == [0, 2]
    assert soft[0].tolist() == [1, 0, 0]
