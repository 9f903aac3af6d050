"""How learned vectors are stored: as directions, in int8 or float16; their norm is that of the model's token table."""

from __future__ import annotations

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.errors import StageError
from d3m_assets.foundation.vector_layout import VectorLayout


def _parts(rows: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(widths)[:-1], axis=-1)


def to_stored(rows: np.ndarray, plan: EmbeddingPlan, widths: tuple[int, ...]) -> np.ndarray:
    """Directions of float ``[prompts, vectors, D]`` rows, whose parts have these widths, in the plan's storage type."""
    stored = []
    for part in _parts(rows, widths):
        if plan.storage_type == "fp16":
            stored.append((part / np.linalg.norm(part, axis=-1, keepdims=True)).astype(np.float16))
        else:
            stored.append(np.round(127 * part / np.abs(part).max(-1, keepdims=True)).astype(np.int8))
    return np.concatenate(stored, axis=-1)


def from_stored(vectors: np.ndarray, layout: VectorLayout) -> np.ndarray:
    """float32 rows at the layout's norms of stored directions, int8 or float16 ``[..., D]``.

    Raises:
        StageError: A vector is zero or not finite, or of another width.
    """
    if vectors.shape[-1] != sum(layout.widths):
        raise StageError(
            f"embedding vectors of {vectors.shape[-1]} numbers do not fit this foundation model, which takes "
            f"{' + '.join(map(str, layout.widths))}; use the model that they were learned with"
        )
    rows = []
    for part, norm in zip(_parts(vectors.astype(np.float32), layout.widths), layout.norms, strict=True):
        length = np.linalg.norm(part, axis=-1, keepdims=True)
        if not np.isfinite(length).all() or not (length > 0).all():
            raise StageError("an embedding vector is zero or not finite; delete its artefact and run `d3m distill`")
        rows.append(part / length * np.float32(norm))
    return np.concatenate(rows, axis=-1)
