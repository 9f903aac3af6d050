"""How learned vectors are stored: as directions, in int8 or float16.

Their norm is that of the model's token table, or is stored after the directions: a float16 for each text encoder, which
takes the place of two int8 numbers or of one float16.
"""

from __future__ import annotations

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.errors import StageError
from d3m_assets.foundation.vector_layout import VectorLayout

_NORM = np.dtype("<f2")


def _parts(rows: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(widths)[:-1], axis=-1)


def to_stored(rows: np.ndarray, plan: EmbeddingPlan, widths: tuple[int, ...]) -> np.ndarray:
    """Convert rows to the plan's storage type.

    Args:
        rows: Float ``[prompts, vectors, D]``.
        plan: Storage type, and whether norms are stored.
        widths: Of the parts of D, one for each text encoder.

    Returns:
        int8 or float16 ``[prompts, vectors, D]``, or, where the plan has norms, ``[prompts, vectors, stored_width]``.
    """
    stored, norms = [], []
    for part in _parts(rows, widths):
        norm = np.linalg.norm(part, axis=-1, keepdims=True)
        if plan.storage_type == "fp16":
            stored.append((part / norm).astype(np.float16))
        else:
            stored.append(np.round(127 * part / np.abs(part).max(-1, keepdims=True)).astype(np.int8))
        norms.append(norm.astype(_NORM).view(stored[0].dtype))
    return np.concatenate([*stored, *(norms if plan.norms else [])], axis=-1)


def from_stored(vectors: np.ndarray, layout: VectorLayout) -> np.ndarray:
    """float32 rows of stored vectors, at their own norms or, where none are stored, at the layout's.

    Args:
        vectors: int8 or float16, ``[..., D]`` or ``[..., stored_width]``.
        layout: Of the model.

    Raises:
        StageError: A vector is zero or not finite, or of another width.
    """
    width, norm_width = sum(layout.widths), len(layout.widths) * _NORM.itemsize // vectors.itemsize
    if vectors.shape[-1] not in (width, width + norm_width):
        raise StageError(
            f"embedding vectors of {vectors.shape[-1]} numbers do not fit this foundation model, which takes "
            f"{' + '.join(map(str, layout.widths))}; use the model that they were learned with"
        )
    norms = np.array(layout.norms, np.float32)
    if vectors.shape[-1] > width:
        norms = np.ascontiguousarray(vectors[..., width:]).view(_NORM).astype(np.float32)
    rows = []
    directions = vectors[..., :width].astype(np.float32)
    for k, part in enumerate(_parts(directions, layout.widths)):
        length, norm = np.linalg.norm(part, axis=-1, keepdims=True), norms[..., k, None]
        if not all(np.isfinite(values).all() and (values > 0).all() for values in (length, norm)):
            raise StageError("an embedding vector is zero or not finite; delete its artefact and run `d3m distill`")
        rows.append(part / length * norm)
    return np.concatenate(rows, axis=-1)
