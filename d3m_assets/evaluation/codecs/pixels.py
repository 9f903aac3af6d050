"""Pixels at few grey levels, entropy-coded with what their neighbours suggest."""

from __future__ import annotations

import numpy as np

from d3m_assets.evaluation.codecs.arithmetic import Decoder, coded_bits, encode, tree_bits

MODELS = 4
"""Ways to look at neighbours: none, left and above together, left and above each, and diagonally as well."""


def quantised(images: np.ndarray, steps: int) -> np.ndarray:
    """Pixels, uint8 of any shape, as the nearest of ``steps`` + 1 levels from 0 to 255: integers 0..steps."""
    return (images.astype(np.int64) * steps * 2 + 255) // 510


def restored(levels: np.ndarray, steps: int) -> np.ndarray:
    """Levels 0..steps as pixels, uint8."""
    return ((levels * 510 + steps) // (2 * steps)).astype(np.uint8)


def exact_steps(images: np.ndarray) -> int:
    """Fewest steps that hold images exactly, such as 16 for scanned digits of 17 grey levels; 255 for any other."""
    for steps in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 51, 63, 64, 85, 127, 128):
        if (restored(quantised(images, steps), steps) == images).all():
            return steps
    return 255


def _coarse(levels: np.ndarray, steps: int) -> np.ndarray:
    return (levels > 0).astype(np.int64) + (2 * levels > steps)


def _contexts(levels: np.ndarray, steps: int, model: int) -> np.ndarray:
    """Context of every pixel, int64 ``[N, H, W, C]``, from pixels that are decoded before it."""
    if model == 0:
        return np.zeros(levels.shape, np.int64)
    padded = np.pad(levels, ((0, 0), (1, 0), (1, 1), (0, 0)))
    left, above = padded[:, 1:, :-2], padded[:, :-1, 1:-1]
    if model == 1:
        contexts = np.minimum((left + above) * 3 // (2 * steps) + (left + above > 0), 3)
    else:
        contexts = _coarse(left, steps) * 3 + _coarse(above, steps)
    if model == 3:
        diagonals = (padded[:, :-1, :-2] > 0).astype(np.int64) * 2 + (padded[:, :-1, 2:] > 0)
        contexts = contexts * 4 + diagonals
    if levels.shape[3] > 1:
        # Colours of a pixel are much alike: the one before stands beside the neighbours.
        before = np.concatenate([np.zeros_like(levels[..., :1]), levels[..., :-1]], axis=3)
        first = np.arange(levels.shape[3]) == 0
        contexts = contexts * 5 + np.where(first, 0, 1 + np.minimum(before * 4 // (steps + 1), 3))
    return contexts


def bits_of(levels: np.ndarray, steps: int, model: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and bits of levels, 0..steps ``[N, H, W, C]``, image after image."""
    return tree_bits(_contexts(levels, steps, model).ravel(), levels.ravel(), steps.bit_length())


def best_model(levels: np.ndarray, steps: int) -> tuple[int, float]:
    """The way to look at neighbours that takes the fewest bits, and how many."""
    lengths = [coded_bits(*bits_of(levels, steps, model)) for model in range(MODELS)]
    model = int(np.argmin(lengths))
    return model, lengths[model]


def encode_levels(levels: np.ndarray, steps: int, model: int) -> bytes:
    """Encode levels 0..steps ``[N, H, W, C]``."""
    contexts, bits = bits_of(levels, steps, model)
    return encode(contexts.tolist(), bits.tolist())


def decode_levels(data: bytes, shape: tuple[int, ...], steps: int, model: int) -> np.ndarray:
    """The levels of :func:`encode_levels`, int64 of the same shape ``[N, H, W, C]``."""
    decoder, depth = Decoder(data), steps.bit_length()
    levels = np.zeros(shape, np.int64)
    n, height, width, channels = shape
    for image in levels:
        rows = [[[0] * channels for _ in range(width + 2)] for _ in range(height + 1)]
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                for c in range(channels):
                    context = _context(rows, y, x, c, steps, model, channels)
                    rows[y][x][c] = decoder.tree(context, depth)
        image[:] = np.array(rows, np.int64)[1:, 1:-1]
    return levels


def _context(rows: list[list[list[int]]], y: int, x: int, c: int, steps: int, model: int, channels: int) -> int:
    """One pixel's context, as :func:`_contexts` has it for all; rows have a border of zeros."""
    if model == 0:
        return 0
    left, above = rows[y][x - 1][c], rows[y - 1][x][c]
    if model == 1:
        context = min((left + above) * 3 // (2 * steps) + (left + above > 0), 3)
    else:
        context = ((left > 0) + (2 * left > steps)) * 3 + (above > 0) + (2 * above > steps)
    if model == 3:
        context = context * 4 + (rows[y - 1][x - 1][c] > 0) * 2 + (rows[y - 1][x + 1][c] > 0)
    if channels > 1:
        context = context * 5 + (1 + min(rows[y][x][c - 1] * 4 // (steps + 1), 3) if c else 0)
    return context
