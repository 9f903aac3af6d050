"""Cosine transform of whole images, its coefficients rounded to one step and entropy-coded by frequency.

One step for all coefficients spends bits where they save most squared error (reverse water-filling): a coefficient whose
spread is below the step costs next to nothing, and adaptive probabilities learn that from the data, without tables.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import numpy as np

from d3m_assets.evaluation.codecs.arithmetic import Decoder, coded_bits, encode

MODELS = 3
"""Ways to group coefficients: by diagonal and neighbours, each by itself, each by itself with neighbours."""
_DEAD_ZONE = 0.42
"""Added before cutting off: below a half, so that small coefficients become zeros, which are cheap."""
_LENGTHS = 16
_Numbers = TypeVar("_Numbers", int, np.ndarray)
_GREY_AND_COLOUR = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


def quantised(images: np.ndarray, step: int) -> np.ndarray:
    """Coefficients of images, uint8 ``[N, H, W, C]``, in steps: int64 of the same shape, by rising frequency."""
    from scipy.fft import dctn

    values = images.astype(np.float64)
    if values.shape[3] == 3:
        values = values @ _GREY_AND_COLOUR.T
    scaled = dctn(values, axes=(1, 2), norm="ortho") / step
    return (np.sign(scaled) * np.floor(np.abs(scaled) + _DEAD_ZONE)).astype(np.int64)


def restored(levels: np.ndarray, step: int) -> np.ndarray:
    """Images, uint8, of coefficients in steps."""
    from scipy.fft import idctn

    values = idctn(levels.astype(np.float64) * step, axes=(1, 2), norm="ortho")
    if values.shape[3] == 3:
        values = values @ _GREY_AND_COLOUR
    return np.round(values).clip(0, 255).astype(np.uint8)


@cache
def _zigzag(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of coefficients, the lowest frequencies first."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    order = np.lexsort((rows, rows + columns))
    return rows[order], columns[order]


def _groups(rows: np.ndarray, columns: np.ndarray, model: int) -> np.ndarray:
    """Group of every coefficient, by its place alone."""
    diagonals = np.minimum(rows + columns, 15)
    return diagonals if model == 0 else np.minimum(np.arange(len(rows)), 255)


def _with_neighbours(model: int) -> bool:
    return model != 1


def bits_of(levels: np.ndarray, model: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and bits of coefficients ``[N, H, W, C]``, image after image."""
    n, height, width, channels = levels.shape
    rows, columns = _zigzag(height, width)
    magnitudes = np.pad(np.abs(levels), ((0, 0), (1, 0), (1, 0), (0, 0)))
    near = (magnitudes[:, :-1, 1:] > 0).astype(np.int64) + (magnitudes[:, 1:, :-1] > 0)
    near = near[:, rows, columns] * _with_neighbours(model)
    values = levels[:, rows, columns]
    groups = (_groups(rows, columns, model)[:, None] * 3 + np.arange(channels))[None] * 3 + near
    places = np.broadcast_to((_groups(rows, columns, model)[:, None] * 3 + np.arange(channels))[None], values.shape)
    values, groups, places = values.ravel(), groups.ravel(), places.ravel()
    # A number is its length in bits, counted by ones that a zero ends; then its lower bits; then its sign.
    sizes = np.frexp(np.abs(values).astype(np.float64))[1].astype(np.int64)
    longest = int(sizes.max(initial=0))
    slots = np.arange(longest + 1)
    contexts = [_length_context(groups[:, None], slots)]
    bits, taken = [(slots < sizes[:, None]).astype(np.int64)], [slots <= sizes[:, None]]
    for place in range(longest - 2, -1, -1):
        contexts.append(_lower_context(sizes, np.abs(values) >> (place + 1))[:, None])
        bits.append((np.abs(values) >> place & 1)[:, None])
        taken.append((place < sizes - 1)[:, None])
    contexts.append(_sign_context(places)[:, None])
    bits.append((values < 0).astype(np.int64)[:, None])
    taken.append((values != 0)[:, None])
    kept = np.concatenate(taken, axis=1)
    return np.concatenate(contexts, axis=1)[kept], np.concatenate(bits, axis=1)[kept]


def _length_context(group: _Numbers, slot: _Numbers) -> _Numbers:
    return (group * _LENGTHS + slot) * 3


def _lower_context(size: _Numbers, higher: _Numbers) -> _Numbers:
    return (size * 4096 + higher) * 3 + 1


def _sign_context(place: _Numbers) -> _Numbers:
    return place * 3 + 2


def best_model(levels: np.ndarray) -> tuple[int, float]:
    """The way to group coefficients that takes the fewest bits, and how many."""
    lengths = [coded_bits(*bits_of(levels, model)) for model in range(MODELS)]
    model = int(np.argmin(lengths))
    return model, lengths[model]


def encode_levels(levels: np.ndarray, model: int) -> bytes:
    """Encode coefficients in steps ``[N, H, W, C]``."""
    contexts, bits = bits_of(levels, model)
    return encode(contexts.tolist(), bits.tolist())


def decode_levels(data: bytes, shape: tuple[int, ...], model: int) -> np.ndarray:
    """The coefficients of :func:`encode_levels`, int64 of the same shape ``[N, H, W, C]``."""
    decoder, levels = Decoder(data), np.zeros(shape, np.int64)
    n, height, width, channels = shape
    rows, columns = _zigzag(height, width)
    places = list(zip(rows.tolist(), columns.tolist(), _groups(rows, columns, model).tolist(), strict=True))
    look = _with_neighbours(model)
    for image in levels:
        seen = [[[0] * channels for _ in range(width + 1)] for _ in range(height + 1)]
        for y, x, group in places:
            for c in range(channels):
                near = ((seen[y][x + 1][c] != 0) + (seen[y + 1][x][c] != 0)) * look
                seen[y + 1][x + 1][c] = _number(decoder, (group * 3 + c) * 3 + near, group * 3 + c)
        image[:] = np.array(seen, np.int64)[1:, 1:]
    return levels


def _number(decoder: Decoder, group: int, place: int) -> int:
    size = 0
    while decoder.bit(_length_context(group, size)):
        size += 1
        if size >= _LENGTHS:  # longer than any coefficient: the data is not what was encoded
            return 0
    if size == 0:
        return 0
    value = 1
    for _ in range(size - 1):
        value = value << 1 | decoder.bit(_lower_context(size, value))
    return -value if decoder.bit(_sign_context(place)) else value
