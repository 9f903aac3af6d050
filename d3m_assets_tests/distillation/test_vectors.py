import numpy as np
import pytest

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.distillation.vectors import from_stored, to_stored
from d3m_assets.errors import StageError
from d3m_assets.foundation.vector_layout import VectorLayout


@pytest.mark.parametrize(("kind", "tolerance"), [("int4", 0.02), ("int8", 0.02), ("fp16", 0.001)])
def test_storage_keeps_the_direction_and_needs_no_scale(kind, tolerance):
    rows = np.random.default_rng(0).normal(size=(5, 2, 64)).astype(np.float32)
    plan = EmbeddingPlan(5, 2, kind, 64)
    layout = VectorLayout((64,), (0.4,))
    stored = to_stored(rows, plan, layout.widths)
    assert stored.nbytes == plan.payload
    back = from_stored(stored, layout)
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), 0.4, rtol=1e-5)
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert (1 - (unit * back / 0.4).sum(-1)).max() < tolerance


@pytest.mark.parametrize("bad", [np.zeros((1, 1, 4), np.int8), np.full((1, 1, 4), np.nan, np.float16)])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(StageError, match="zero or not finite"):
        from_stored(bad, VectorLayout((4,), (1.0,)))


def test_parts_of_two_text_encoders_keep_their_own_norms():
    layout = VectorLayout((16, 32), (0.4, 2.0))
    rows = np.random.default_rng(0).normal(size=(3, 1, 48)).astype(np.float32) * ([9.0] * 16 + [0.1] * 32)
    back = from_stored(to_stored(rows, EmbeddingPlan(3, 1, "int8", 48), layout.widths), layout)
    for part, real, norm in ((back[..., :16], rows[..., :16], 0.4), (back[..., 16:], rows[..., 16:], 2.0)):
        np.testing.assert_allclose(np.linalg.norm(part, axis=-1), norm, rtol=1e-5)
        assert (part * real).sum(-1).min() > 0.99 * norm * np.linalg.norm(real, axis=-1).min()


def test_vectors_of_another_model_are_refused():
    with pytest.raises(StageError, match="64 numbers.*16 \\+ 32"):
        from_stored(np.ones((1, 1, 64), np.int8), VectorLayout((16, 32), (1.0, 1.0)))


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.01), ("fp16", 0.001)])
def test_stored_norms_come_back_for_every_part(kind, tolerance):
    layout = VectorLayout((16, 32), (0.4, 2.0))
    rows = np.random.default_rng(0).normal(size=(3, 2, 48)).astype(np.float32) * ([9.0] * 16 + [0.1] * 32)
    plan = EmbeddingPlan(3, 2, kind, 48, norms=2)
    stored = to_stored(rows, plan, layout.widths)
    assert stored.shape == (3, 2, plan.stored_width)
    assert stored.nbytes == plan.payload
    back = from_stored(stored, layout)
    for part in (slice(0, 16), slice(16, 48)):
        real, found = rows[..., part], back[..., part]
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(real, axis=-1), rtol=1e-3)
        assert np.abs(found - real).max() < tolerance * np.abs(real).max()
    # Behind the directions, which are those that are stored without norms.
    plain = to_stored(rows, EmbeddingPlan(3, 2, kind, 48), layout.widths)
    assert np.array_equal(stored[..., :48], plain)


@pytest.mark.parametrize("norm", [0.0, np.nan, np.inf])
def test_a_norm_that_is_none_is_refused(norm):
    stored = np.concatenate([np.ones(4, np.float16), np.array([norm], np.float16)])[None, None]
    with pytest.raises(StageError, match="zero or not finite"):
        from_stored(stored, VectorLayout((4,), (1.0,)))


@pytest.mark.parametrize("width", [7, 64])
def test_int4_numbers_come_back_whatever_their_number(width):
    layout = VectorLayout((width,), (1.0,))
    numbers = np.random.default_rng(0).integers(-7, 8, (9, 1, width)).astype(np.float32)
    numbers[:, :, 0] = 7  # at its own scale a vector of such numbers is stored as it is
    plan = EmbeddingPlan(9, 1, "int4", width)
    stored = to_stored(numbers, plan, layout.widths)
    assert (stored.dtype, stored.nbytes) == (np.uint8, plan.payload)
    back = from_stored(stored, layout)
    np.testing.assert_allclose(back, numbers / np.linalg.norm(numbers, axis=-1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_int4_is_no_farther_from_the_direction_than_rounding_at_the_largest_number():
    rows = np.random.default_rng(0).normal(size=(200, 1, 64)).astype(np.float32)
    back = from_stored(to_stored(rows, EmbeddingPlan(200, 1, "int4", 64), (64,)), VectorLayout((64,), (1.0,)))
    simple = np.round(7 * rows / np.abs(rows).max(-1, keepdims=True))

    def cosine(found):
        return (rows * found).sum(-1) / np.linalg.norm(rows, axis=-1) / np.linalg.norm(found, axis=-1)

    assert (cosine(back) >= cosine(simple) - 1e-6).all()
    assert cosine(back).mean() > cosine(simple).mean() + 5e-4
    assert cosine(back).min() > 0.985


def test_stored_norms_stand_behind_int4_numbers():
    layout = VectorLayout((16, 33), (0.4, 2.0))
    rows = np.random.default_rng(0).normal(size=(3, 2, 49)).astype(np.float32) * ([9.0] * 16 + [0.1] * 33)
    plan = EmbeddingPlan(3, 2, "int4", 49, norms=2)
    stored = to_stored(rows, plan, layout.widths)
    assert stored.shape == (3, 2, plan.stored_width) == (3, 2, 25 + 4)
    back = from_stored(stored, layout)
    for part in (slice(0, 16), slice(16, 49)):
        np.testing.assert_allclose(
            np.linalg.norm(back[..., part], axis=-1), np.linalg.norm(rows[..., part], axis=-1), rtol=1e-3
        )
