"""Adaptive binary arithmetic coding: nothing but the coded bits is stored, since tables grow with what was decoded so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from d3m_assets.errors import StageError

_TOP, _ONE = 0xFF000000, 0xFFFFFFFF
_PRIOR = 0.4
"""Of each bit in a context, before any was seen; 2/5 in the integer arithmetic of :func:`_probability`."""


def _probability(zeros: int, ones: int) -> int:
    """Probability of a one after so many zeros and ones of a context, times 65,536, in 1..65,535; integers only."""
    p = ((5 * ones + 2) << 16) // (5 * (zeros + ones) + 4)
    return min(max(p, 1), 65535)


def coded_bits(contexts: np.ndarray, bits: np.ndarray) -> float:
    """Length of what :func:`encode` makes, in bits, computed without encoding; the coder itself adds at most two bytes.

    With adaptive probabilities it depends on how many zeros and ones each context has, not on their order.

    Args:
        contexts: Context of each bit, non-negative integers ``[M]``.
        bits: 0 or 1 ``[M]``.
    """
    from scipy.special import betaln

    totals = np.bincount(contexts)
    used = totals > 0
    ones = np.bincount(contexts, weights=bits)[used]
    zeros = totals[used] - ones
    nats = betaln(_PRIOR, _PRIOR) - betaln(ones + _PRIOR, zeros + _PRIOR)
    return float(nats.sum() / math.log(2))


def encode(contexts: Sequence[int], bits: Sequence[int]) -> bytes:
    """Encode bits, each with the probability that earlier bits of its context suggest.

    The coder is that of Mahoney's lpaq: an interval of 32 bits, cut in proportion to a probability of 16 bits.
    """
    counts: dict[int, list[int]] = {}
    low, high, out = 0, _ONE, bytearray()
    for context, bit in zip(contexts, bits, strict=True):
        seen = counts.setdefault(context, [0, 0])
        middle = low + ((high - low) * _probability(*seen) >> 16)
        if bit:
            high = middle
        else:
            low = middle + 1
        seen[bit] += 1
        while not (low ^ high) & _TOP:
            out.append(high >> 24)
            low, high = low << 8 & _ONE, high << 8 & _ONE | 0xFF
    # The shortest end inside the interval; the decoder reads zeros beyond it.
    for length in range(5):
        mask = _ONE >> (8 * length)
        end = (low + mask) & ~mask
        if low <= end <= high:
            out += end.to_bytes(4, "big")[:length] if end <= _ONE else b""
            break
    return bytes(out).rstrip(b"\0")


class Decoder:
    """Gives back the bits that :func:`encode` was given, one by one, for the same contexts in the same order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 4
        self._low, self._high = 0, _ONE
        self._value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._counts: dict[int, list[int]] = {}

    def bit(self, context: int) -> int:
        """The next bit, of a context.

        Raises:
            StageError: The data is not what was encoded with these contexts: it ends long before its bits do.
        """
        seen = self._counts.setdefault(context, [0, 0])
        middle = self._low + ((self._high - self._low) * _probability(*seen) >> 16)
        bit = int(self._value <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        seen[bit] += 1
        while not (self._low ^ self._high) & _TOP:
            following = self._data[self._next] if self._next < len(self._data) else 0
            self._next += 1
            self._low, self._high = self._low << 8 & _ONE, self._high << 8 & _ONE | 0xFF
            self._value = self._value << 8 & _ONE | following
        return bit

    def tree(self, context: int, depth: int) -> int:
        """The next number of ``depth`` bits, coded as :func:`tree_bits` does."""
        node = 1
        for _ in range(depth):
            node = node << 1 | self.bit((context << depth) + node)
        return node - (1 << depth)


def tree_bits(contexts: np.ndarray, values: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as bits, the highest first, each in the context of its number and of the bits before it.

    Args:
        contexts: Context of each number, non-negative integers ``[M]``.
        values: Numbers below 2^depth ``[M]``.
        depth: Bits of a number.

    Returns:
        Contexts and bits, int64 ``[M · depth]`` each.

    Raises:
        StageError: A number is out of range.
    """
    if values.size and not 0 <= values.min() <= values.max() < 1 << depth:
        raise StageError(f"numbers from {values.min()} to {values.max()} do not have {depth} bits")
    places = np.arange(depth - 1, -1, -1)
    nodes = (1 << (depth - 1 - places)) | (values[:, None] >> (places + 1))
    bits = values[:, None] >> places & 1
    return ((contexts[:, None] << depth) + nodes).ravel(), bits.ravel()
