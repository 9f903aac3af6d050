"""Image codecs: what the images of a class cost as bytes that they can be decoded from, every byte counted.

A payload holds all that is needed beside the stored size of an image, which is known as it is for raw ones: one byte that
names the codec and its quality, the number of images with the model that the codec took, and the body. Nothing is decoded
from anything else. Tables are either in the body or, with adaptive arithmetic coding, are not needed.
"""

from __future__ import annotations

import lzma
import zlib

import numpy as np

from d3m_assets.errors import StageError
from d3m_assets.evaluation.codecs import pictures
from d3m_assets.evaluation.codecs.codec import (
    Codec,
    Compressed,
    Cosines,
    ExactPixels,
    LosslessSheet,
    LossySheet,
    QuantisedPixels,
)

CODE_VERSION = "1"
"""Raised whenever a change here changes bytes or decoded images."""

_RAW_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


PACKED: tuple[Codec, ...] = (
    ExactPixels(),
    LosslessSheet("PNG"),
    LosslessSheet("WebP lossless"),
    Compressed("deflate", _deflate, lambda body: zlib.decompress(body, -15)),
    Compressed(
        "LZMA",
        lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=_RAW_LZMA),
        lambda body: lzma.decompress(body, lzma.FORMAT_RAW, filters=_RAW_LZMA),
    ),
)
"""Lossless codecs; a class takes the one that is shortest for it."""

CODED: tuple[Codec, ...] = (
    *(QuantisedPixels(4, steps) for steps in (1, 2, 3, 5, 7, 15, 31, 63)),
    *(QuantisedPixels(scale, steps) for scale in (3, 2, 1) for steps in (1, 3, 7, 15, 31)),
    *(Cosines(scale, step) for scale in (4, 2) for step in (16, 24, 36, 54, 80, 120, 180, 270, 400)),
    *(
        LossySheet(scale, name, quality)
        for scale in (4, 2, 1)
        for name in pictures.LOSSY
        for quality in (5, 15, 30, 50, 70, 85)
    ),
)
"""Lossy codecs at their qualities; one of them is chosen for a whole training set."""

_ALL: tuple[Codec, ...] = (*PACKED, *CODED)
assert len(_ALL) <= 256  # a byte names each


def encode_images(codec: Codec, images: np.ndarray) -> bytes:
    """The payload of a class.

    Args:
        codec: One of :data:`PACKED` or :data:`CODED`.
        images: uint8 ``[N, H, W, C]``, at least one.
    """
    if not len(images):
        raise StageError("no image to encode; a class has at least one")
    model, body = codec.encode(images)
    return bytes([codec_number(codec)]) + _varint(len(images) << 2 | model) + body


def decode_images(payload: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The images of a payload, from its bytes alone.

    Args:
        payload: From :func:`encode_images`.
        shape: Stored height, width and channels of an image.

    Returns:
        uint8 ``[N, *shape]``.

    Raises:
        StageError: It names no codec, or its body is damaged.
    """
    try:
        codec, (number, start) = _ALL[payload[0]], _read_varint(payload, 1)
        return codec.decode(number & 3, payload[start:], number >> 2, shape)
    except (IndexError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise StageError(
            f"coded images of {len(payload)} bytes cannot be decoded: {error}; encode them again"
        ) from None


def read_header(payload: bytes) -> tuple[Codec, int]:
    """Codec and number of images of a payload.

    Raises:
        IndexError, ValueError: It has no such header.
    """
    return _ALL[payload[0]], _read_varint(payload, 1)[0] >> 2


def codec_number(codec: Codec) -> int:
    """The byte that names a codec in payloads."""
    return _ALL.index(codec)


def codec_of(number: int) -> Codec:
    """The codec of :func:`codec_number`."""
    return _ALL[number]


def payload_length(codec: Codec, images: np.ndarray) -> float:
    """Bytes of :func:`encode_images`, without encoding where the codec can tell; up to three bytes too few."""
    return 1 + len(_varint(len(images) << 2)) + codec.length(images)


_LONGEST_NUMBER = 35
"""Bits of the longest number in a header."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """A number and the position behind it."""
    number = shift = 0
    while data[start] & 0x80:
        if shift > _LONGEST_NUMBER:
            raise ValueError("a number without end")
        number |= (data[start] & 0x7F) << shift
        start, shift = start + 1, shift + 7
    return number | data[start] << shift, start + 1
