"""Reading codes that come from outside: what is not a code of this package is refused before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d3m_assets.errors import StageError
from d3m_assets.evaluation.codecs import CODED, decode_images, read_header
from d3m_assets.evaluation.codecs.codec import Codec, LossySheet
from d3m_assets.evaluation.codecs.pictures import available

MOST_PIXELS = 1 << 27
"""Of all images of a code, all channels: more could fill the memory of who reads it."""


@dataclass(frozen=True)
class CodeHeader:
    """What a code says of itself.

    Attributes:
        codec: With its quality.
        count: Images that it holds.
    """

    codec: Codec
    count: int


def code_header(code: bytes, shape: tuple[int, int, int]) -> CodeHeader:
    """Codec and number of images of a code, checked without decoding it.

    Args:
        code: From :func:`~d3m_assets.evaluation.codecs.encode_images`.
        shape: Stored height, width and channels of an image.

    Raises:
        StageError: It is no code of a lossy codec for images of this shape, or of more images than could be meant, or of a
            file format that this Pillow cannot read.
    """
    try:
        codec, count = read_header(code)
    except (IndexError, ValueError) as error:
        raise StageError(f"{len(code)} bytes are no code of images: {error}; get them again") from None
    if codec not in CODED:
        raise StageError(f"images coded as {codec.words} are no payload; get the code again")
    if isinstance(codec, LossySheet) and not available(codec.format):
        raise StageError(
            f"images coded as {codec.words} cannot be read by this Pillow; install one with {codec.format}"
        )
    if not 1 <= count <= MOST_PIXELS // max(1, int(np.prod(shape))) or not codec.suits(shape, count):
        raise StageError(
            f"a code of {count} images of {' x '.join(map(str, shape))} as {codec.words} is none; get it again"
        )
    return CodeHeader(codec, count)


def read_code(code: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The images of a code, uint8 ``[N, *shape]``; arguments and errors as of :func:`code_header`.

    Raises:
        StageError: It is no such code, or damaged.
    """
    header = code_header(code, shape)
    images = decode_images(code, shape)
    if images.shape != (header.count, *shape):
        raise StageError(f"a code of {header.count} images holds {images.shape}; get it again")
    return images
