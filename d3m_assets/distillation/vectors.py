"""How learned vectors are stored: as directions, in int4, int8 or float16.

Two int4 numbers, -7 to 7, share a byte: the first in its low half. A vector's norm is that of the model's token table, or is
stored after the directions: a float16 for each text encoder, which takes the place of two bytes or of one float16.
"""

from __future__ import annotations

import numpy as np

from d3m_assets.distillation.budgets import EmbeddingPlan
from d3m_assets.errors import StageError
from d3m_assets.foundation.vector_layout import VectorLayout

_NORM = np.dtype("<f2")
_INT4_LIMIT = 7
_INT4_SCALES = np.linspace(0.5, 1.0, 26)
"""Largest number of a direction as a share of where it is cut off; the nearest direction of all is stored."""


def _parts(rows: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(widths)[:-1], axis=-1)


def to_stored(rows: np.ndarray, plan: EmbeddingPlan, widths: tuple[int, ...]) -> np.ndarray:
    """Convert rows to the plan's storage type.

    Args:
        rows: Float ``[prompts, vectors, D]``.
        plan: Storage type, and whether norms are stored.
        widths: Of the parts of D, one for each text encoder.

    Returns:
        uint8 (two int4 numbers each), int8 or float16 ``[prompts, vectors, stored_width]``.
    """
    stored: list[np.ndarray] = []
    norms: list[np.ndarray] = []
    for part in _parts(rows, widths):
        norm = np.linalg.norm(part, axis=-1, keepdims=True)
        if plan.storage_type == "fp16":
            stored.append((part / norm).astype(np.float16))
        elif plan.storage_type == "int4":
            stored.append(_nearest_int4(part))
        else:
            stored.append(np.round(127 * part / np.abs(part).max(-1, keepdims=True)).astype(np.int8))
        norms.append(norm.astype(_NORM))
    directions = np.concatenate(stored, axis=-1)
    if plan.storage_type == "int4":
        directions = _pack(directions)
    ends = [norm.view(directions.dtype) for norm in norms] if plan.norms else []
    return np.concatenate([directions, *ends], axis=-1)


def _nearest_int4(rows: np.ndarray) -> np.ndarray:
    """The directions of -7 to 7, int8 ``[..., D]``, at the smallest angles to float rows ``[..., D]``.

    Which number the largest is rounded to is searched for: cutting a few large numbers off brings the many small ones nearer.
    """
    largest = np.abs(rows).max(-1, keepdims=True)
    best, best_cosine = np.zeros(rows.shape, np.int8), np.full((*rows.shape[:-1], 1), -np.inf)
    for share in _INT4_SCALES:
        scaled = rows / (largest * share) * _INT4_LIMIT
        rounded = np.clip(np.round(scaled), -_INT4_LIMIT, _INT4_LIMIT)
        cosine = (rounded * rows).sum(-1, keepdims=True) / np.linalg.norm(rounded, axis=-1, keepdims=True)
        better = cosine > best_cosine
        best = np.where(better, rounded, best).astype(np.int8)
        best_cosine = np.where(better, cosine, best_cosine)
    return best


def _pack(numbers: np.ndarray) -> np.ndarray:
    """Numbers of -8 to 7, int8 ``[..., D]``, two in a byte: uint8 ``[..., ceil(D / 2)]``."""
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    halves = numbers.astype(np.uint8) & 0x0F
    return halves[..., ::2] | halves[..., 1::2] << 4


def _unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """Undo :func:`_pack` for ``width`` numbers."""
    halves = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :width]
    return np.where(halves > _INT4_LIMIT, halves.astype(np.int8) - 16, halves.astype(np.int8))


def check_stored(vectors: np.ndarray, plan: EmbeddingPlan) -> None:
    """Refuse stored vectors that no inversion gives, as far as it can be told without their model.

    Args:
        vectors: As :func:`to_stored` gives them, ``[N, stored_width]``.
        plan: How one is stored.

    Raises:
        StageError: A vector is zero or not finite, or its norm is.
    """
    norm_width = plan.norms * _NORM.itemsize // vectors.itemsize
    directions = vectors[:, : vectors.shape[1] - norm_width]
    norms = np.ascontiguousarray(vectors[:, directions.shape[1] :]).view(_NORM)
    usable = np.isfinite(directions).all() and directions.any(axis=1).all()
    if not usable or not np.isfinite(norms).all() or not (norms > 0).all():
        raise StageError("an embedding vector is zero or not finite")


def from_stored(vectors: np.ndarray, layout: VectorLayout) -> np.ndarray:
    """float32 rows of stored vectors, at their own norms or, where none are stored, at the layout's.

    Args:
        vectors: As :func:`to_stored` gives them; uint8 are packed int4 numbers.
        layout: Of the model.

    Raises:
        StageError: A vector is zero or not finite, or of another width.
    """
    numbers, norm_width = sum(layout.widths), len(layout.widths) * _NORM.itemsize // vectors.itemsize
    packed = vectors.dtype == np.uint8
    width = (numbers + 1) // 2 if packed else numbers
    if vectors.shape[-1] not in (width, width + norm_width):
        raise StageError(
            f"embedding vectors of {vectors.shape[-1] * (1 + packed)} numbers do not fit this foundation model, which takes "
            f"{' + '.join(map(str, layout.widths))}; use the model that they were learned with"
        )
    norms = np.array(layout.norms, np.float32)
    if vectors.shape[-1] > width:
        norms = np.ascontiguousarray(vectors[..., width:]).view(_NORM).astype(np.float32)
    rows = []
    directions = (_unpack(vectors[..., :width], numbers) if packed else vectors[..., :width]).astype(np.float32)
    for k, part in enumerate(_parts(directions, layout.widths)):
        length, norm = np.linalg.norm(part, axis=-1, keepdims=True), norms[..., k, None]
        if not all(np.isfinite(values).all() and (values > 0).all() for values in (length, norm)):
            raise StageError("an embedding vector is zero or not finite; delete its artefact and run `d3m distill`")
        rows.append(part / length * norm)
    return np.concatenate(rows, axis=-1)
