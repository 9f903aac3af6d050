"""How learned vectors are stored: as directions, in int8 or float16; their norm is that of the model's token table."""

from __future__ import annotations

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.errors import StageError


def to_stored(rows: np.ndarray, plan: EmbeddingPlan) -> np.ndarray:
    """Directions of float ``[prompts, vectors, D]`` rows in the plan's storage type."""
    if plan.storage_type == "fp16":
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)
    return np.round(127 * rows / np.abs(rows).max(-1, keepdims=True)).astype(np.int8)


def from_stored(vectors: np.ndarray, norm: float) -> np.ndarray:
    """float32 rows at ``norm`` of stored directions, int8 or float16 ``[..., D]``.

    Raises:
        StageError: A vector is zero or not finite.
    """
    rows = vectors.astype(np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or not (length > 0).all():
        raise StageError("an embedding vector is zero or not finite; delete its artefact and run `d3m distill`")
    return rows / length * np.float32(norm)
