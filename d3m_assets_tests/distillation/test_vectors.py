import numpy as np
import pytest

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.vectors import from_stored, to_stored
from d3m_assets.errors import StageError


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("fp16", 0.001)])
def test_storage_keeps_the_direction_and_needs_no_scale(kind, tolerance):
    rows = np.random.default_rng(0).normal(size=(5, 2, 64)).astype(np.float32)
    plan = EmbeddingPlan(5, 2, kind, 64)
    stored = to_stored(rows, plan)
    assert stored.nbytes == plan.payload
    back = from_stored(stored, 0.4)
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), 0.4, rtol=1e-5)
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert (1 - (unit * back / 0.4).sum(-1)).max() < tolerance


@pytest.mark.parametrize("bad", [np.zeros((1, 1, 4), np.int8), np.full((1, 1, 4), np.nan, np.float16)])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(StageError, match="zero or not finite"):
        from_stored(bad, 1.0)
