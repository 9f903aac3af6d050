"""Codecs: ways, each at one quality, to turn the images of a class into bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from d3m_assets.evaluation.codecs import frequencies, pictures, pixels

_LARGEST_SYMBOLS = 1 << 18
"""Pixels of a class that are entropy-coded one by one; beyond them only whole picture files are tried."""
_LARGEST_IMAGE = 1 << 14
"""Pixels of an image, all channels, for the same."""
_SMALLEST_SIDE = 6
"""Of a shrunk image in px; below it little is left of most things."""


class Codec(Protocol):
    """One way, at one quality, to turn images into bytes and back."""

    @property
    def words(self) -> str:
        """What it is, for a report."""

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images of a height, width and channels."""

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model, 0 to 3, and body for images, uint8 ``[N, H, W, C]``."""

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images, uint8 ``[count, *shape]``."""

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding what was encoded gives, by the shortest way: for comparing codecs, never for a training set."""


def _resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images at another size, by Pillow's bicubic filter, which also low-passes when it shrinks."""
    if images.shape[1:3] == (height, width):
        return images
    from PIL import Image

    out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for row, image in zip(out, images, strict=True):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        row[:] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).reshape(row.shape)
    return out


@dataclass(frozen=True)
class _Scaled:
    """A codec that stores images at a fraction of their size.

    Attributes:
        scale: Of height and width, in quarters: 4 keeps the size.
    """

    scale: int

    def _small(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return max(1, shape[0] * self.scale // 4), max(1, shape[1] * self.scale // 4), shape[2]

    def _shrunk(self, images: np.ndarray) -> np.ndarray:
        return _resized(images, *self._small(images.shape[1:])[:2])

    @property
    def _scale_words(self) -> str:
        return "" if self.scale == 4 else f" at {self.scale}/4 of the size"

    def _suits(self, shape: tuple[int, int, int], count: int) -> bool:
        height, width, channels = self._small(shape)
        small = height * width * channels <= _LARGEST_IMAGE
        return small and min(height, width) >= _SMALLEST_SIDE and count * height * width * channels <= _LARGEST_SYMBOLS


@dataclass(frozen=True)
class QuantisedPixels(_Scaled):
    """Pixels rounded to ``steps`` + 1 levels."""

    steps: int

    @property
    def words(self) -> str:
        """What it is, for a report."""
        return f"pixels of {self.steps + 1} levels{self._scale_words}"

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        return self._suits(shape, count)

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        return pixels.best_model(pixels.quantised(self._shrunk(images), self.steps), self.steps)[1] / 8

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        levels = pixels.quantised(self._shrunk(images), self.steps)
        model, _ = pixels.best_model(levels, self.steps)
        return model, pixels.encode_levels(levels, self.steps, model)

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        levels = pixels.decode_levels(body, (count, *self._small(shape)), self.steps, model)
        return _resized(pixels.restored(levels, self.steps), *shape[:2])

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        levels = pixels.quantised(self._shrunk(images), self.steps)
        return _resized(pixels.restored(levels, self.steps), *images.shape[1:3])


@dataclass(frozen=True)
class Cosines(_Scaled):
    """Cosine coefficients rounded to one step."""

    step: int

    @property
    def words(self) -> str:
        """What it is, for a report."""
        return f"cosine transform in steps of {self.step}{self._scale_words}"

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        return self._suits(shape, count) and max(self._small(shape)[:2]) <= 64

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        return frequencies.best_model(frequencies.quantised(self._shrunk(images), self.step))[1] / 8

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        levels = frequencies.quantised(self._shrunk(images), self.step)
        model, _ = frequencies.best_model(levels)
        return model, frequencies.encode_levels(levels, model)

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        levels = frequencies.decode_levels(body, (count, *self._small(shape)), model)
        return _resized(frequencies.restored(levels, self.step), *shape[:2])

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        levels = frequencies.quantised(self._shrunk(images), self.step)
        return _resized(frequencies.restored(levels, self.step), *images.shape[1:3])


@dataclass(frozen=True)
class LossySheet(_Scaled):
    """A lossy picture file with all images."""

    format: str
    quality: int

    @property
    def words(self) -> str:
        """What it is, for a report."""
        return f"{self.format} of quality {self.quality}{self._scale_words}"

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        height, width, _ = self._small(shape)
        large = min(height, width) >= 16
        return large and pictures.available(self.format) and pictures.fits_on_sheet(count, height, width)

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        return len(self.encode(images)[1])

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        return 0, pictures.encode_sheet(self._shrunk(images), self.format, self.quality)

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        return _resized(pictures.decode_sheet(body, self.format, count, self._small(shape)), *shape[:2])

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        height, width, channels = images.shape[1:]
        return self.decode(0, self.encode(images)[1], len(images), (height, width, channels))


@dataclass(frozen=True)
class ExactPixels:
    """Pixels as they are, at as many levels as they have; a byte says how many."""

    words: str = "pixels, arithmetic coding"

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        return int(np.prod(shape)) <= _LARGEST_IMAGE and count * int(np.prod(shape)) <= _LARGEST_SYMBOLS

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        steps = pixels.exact_steps(images)
        return 1 + pixels.best_model(pixels.quantised(images, steps), steps)[1] / 8

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        steps = pixels.exact_steps(images)
        levels = pixels.quantised(images, steps)
        model, _ = pixels.best_model(levels, steps)
        return model, bytes([steps]) + pixels.encode_levels(levels, steps, model)

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        levels = pixels.decode_levels(body[1:], (count, *shape), body[0], model)
        return pixels.restored(levels, body[0])

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        return images


@dataclass(frozen=True)
class LosslessSheet:
    """A lossless picture file with all images."""

    format: str

    @property
    def words(self) -> str:
        """What it is, for a report."""
        return self.format

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        return pictures.available(self.format) and pictures.fits_on_sheet(count, *shape[:2])

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        return len(self.encode(images)[1])

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        return 0, pictures.encode_sheet(images, self.format)

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        return pictures.decode_sheet(body, self.format, count, shape)

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        return images


@dataclass(frozen=True)
class Compressed:
    """All pixels by a general compressor of the standard library."""

    words: str
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]

    def suits(self, shape: tuple[int, int, int], count: int) -> bool:
        """Whether it can and may as well be tried on so many images."""
        return True

    def length(self, images: np.ndarray) -> float:
        """Bytes of the body, exact or within two bytes."""
        return len(self.encode(images)[1])

    def encode(self, images: np.ndarray) -> tuple[int, bytes]:
        """Model and body."""
        return 0, self.compress(images.tobytes())

    def decode(self, model: int, body: bytes, count: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The images of a body."""
        return np.frombuffer(self.decompress(body), np.uint8).reshape(count, *shape).copy()

    def approximation(self, images: np.ndarray) -> np.ndarray:
        """What decoding gives."""
        return images
