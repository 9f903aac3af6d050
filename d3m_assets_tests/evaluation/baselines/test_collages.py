import numpy as np
import pytest

from d3m_assets.evaluation.baselines.collages import CROPS, collages, crops


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 8, 12, 3), (9, 7, 7, 1)])
def test_collages_are_made_of_the_crops_with_the_lowest_loss(shape):
    """Images of one brightness each; the teacher is surest of dark ones."""
    images = np.broadcast_to((20 * np.arange(9, dtype=np.uint8))[:, None, None, None], shape).copy()
    losses = crops(images, seed=0).mean((2, 3, 4))
    made = collages(images, losses, 2, seed=0)
    assert made.shape == (2, *shape[1:]) and made.dtype == np.uint8
    height, width = shape[1:3]
    corners = made[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.tolist() == [[0, 20, 40, 60], [80, 100, 120, 140]]
    assert (made[0, : height // 2, : width // 2] == 0).all()
    many = collages(images, losses, 5, seed=0)
    assert many[2, 0, 0, 0] == 160 and many[2, 0, -1, 0] == 0  # then the second-best crops
    detailed = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    a, b, c = (collages(detailed, crops(detailed, s).std((2, 3, 4)), 2, seed=s) for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_crops_are_squares_of_at_least_half_the_area():
    """A gradient tells where and how large a crop was."""
    gradient = np.broadcast_to(np.arange(0, 64, 2, dtype=np.uint8)[None, None, :, None], (5, 32, 32, 1)).copy()
    made = crops(gradient, seed=0)
    assert made.shape == (5, CROPS, 32, 32, 1)
    spans = made[:, :, 0, -1, 0].astype(int) - made[:, :, 0, 0, 0]
    assert spans.min() >= 62 * np.sqrt(0.5) - 4 and spans.max() <= 62
    assert len(np.unique(made[:, :, 0, 0, 0])) > 5
