import numpy as np
import pytest


@pytest.fixture
def points():
    return np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)
