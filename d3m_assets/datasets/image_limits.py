"""What an image file may ask of its decoder, beyond pixels and bytes: some small files take minutes or gigabytes.

Pillow bounds text in PNG and values in TIFF directories. What is bounded here are parts of a file that its decoders work
through one by one, and how many large images a process holds at once.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections.abc import Iterator

from d3m_assets.datasets.settings import MAX_PIXELS

MOST_READS = 2**18
"""Reads of a file's parts in Python, of a few microseconds each: chunks, segments, blocks, tags."""
MOST_BITMAP_READS = 2**21
"""Of a BMP, whose run lengths are read byte by byte."""
MOST_SCANS = 64
"""Scans of a progressive JPEG of :data:`MAX_PIXELS`, each of which goes through all of them; smaller images may have more."""
MOST_PROFILES = 16
"""Colour profiles in a PNG: each is unpacked to as much as 1 MiB, and one is used."""
MOST_STRIPS = 2**20
"""Strips or tiles of a TIFF, each an object of Python."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
_LISTS_OF_PARTS = (273, 324)  # StripOffsets, TileOffsets


class LimitError(ValueError):
    """A file asks more of its decoder than is allowed; the message is the rest of a sentence."""


class CountedReader(io.BytesIO):
    """The contents of a file, which can be read :data:`MOST_READS` times, as a BMP :data:`MOST_BITMAP_READS`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._most = self._left = MOST_BITMAP_READS if data.startswith(b"BM") else MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            LimitError: It was read too often.
        """
        self._left -= 1
        if self._left < 0:
            raise LimitError(f"consists of more than {self._most:,} parts; save it again, say as PNG")
        return super().read(size)


def check_pixels(pixels: int, max_pixels: int) -> None:
    """Compare the size of an image with the setting.

    Raises:
        LimitError: It is too large.
    """
    if pixels > max_pixels:
        raise LimitError(f"has {pixels:,} pixels; `images.max_pixels` allows {max_pixels:,}")


def check_file(data: bytes, max_pixels: int) -> None:
    """Look for what costs the decoder much before it has told the image's size.

    Raises:
        LimitError: There is such a thing.
    """
    if data.startswith(b"RIFF") and (pixels := _webp_pixels(data)) > max_pixels * 3 // 4:
        raise LimitError(f"has {pixels:,} pixels; `images.max_pixels` allows {max_pixels * 3 // 4:,} of a WebP")
    if data.startswith(b"\x89PNG") and (profiles := data.count(b"iCCP")) > MOST_PROFILES:
        raise LimitError(f"has {profiles:,} colour profiles; at most {MOST_PROFILES} are read")
    if data[:2] in (b"II", b"MM"):
        _check_tiff(data, max(MAX_PIXELS, max_pixels))


def check_scans(data: bytes, pixels: int) -> None:
    """Look whether a JPEG goes through its pixels too often.

    Raises:
        LimitError: It does.
    """
    scans = data.count(b"\xff\xda")
    if scans * pixels > MOST_SCANS * MAX_PIXELS:
        raise LimitError(f"has {scans:,} scans of {pixels:,} pixels; save it as a baseline JPEG")


def _webp_pixels(data: bytes) -> int:
    """Pixels of a WebP, whose decoder takes memory for all of them, several times, as soon as it is made; 0: it is none."""
    kind, number = data[8:16], lambda begin, end: int.from_bytes(data[begin:end], "little")
    if kind == b"WEBPVP8X":
        return (number(24, 27) + 1) * (number(27, 30) + 1)
    if kind == b"WEBPVP8L":
        return ((number(21, 25) & 0x3FFF) + 1) * ((number(21, 25) >> 14 & 0x3FFF) + 1)
    return (number(26, 28) & 0x3FFF) * (number(28, 30) & 0x3FFF) if kind == b"WEBPVP8 " else 0


def _check_tiff(data: bytes, most_pixels: int) -> None:
    """The first directory of a TIFF: how many strips or tiles it has, and how large they are."""
    sides = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    with contextlib.suppress(struct.error):  # cut short: the decoder says so
        order = "<" if data.startswith(b"II") else ">"
        big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        first, count_format, entry_format = (8, "Q", "HHQQ") if big else (4, "H", "HHLL")
        (place,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", data, first)
        (entries,) = struct.unpack_from(order + count_format, data, place)
        place += struct.calcsize(order + count_format)
        for index in range(min(entries, 2**16)):
            start = place + index * struct.calcsize(order + entry_format)
            tag, kind, count, value = struct.unpack_from(order + entry_format, data, start)
            if tag in _LISTS_OF_PARTS and count > MOST_STRIPS:
                raise LimitError(f"has {count:,} strips or tiles; at most {MOST_STRIPS:,} are read")
            if tag in sides:
                if kind == 3:  # two bytes, at the front of the field
                    (value,) = struct.unpack_from(f"{order}H", data, start + struct.calcsize(order + entry_format[:-1]))
                sides[tag] = value
    if (pixels := sides[_TILE_WIDTH] * sides[_TILE_LENGTH]) > most_pixels:
        raise LimitError(f"has tiles of {pixels:,} pixels; `images.max_pixels` allows {most_pixels:,}")


class PixelRoom:
    """Room for a number of pixels, which decoded images share; who finds it full waits.

    Args:
        pixels: All that images of a process together may have; a larger image waits until it is alone.
        small: An image of fewer does not wait and does not count.
    """

    def __init__(self, pixels: int, small: int) -> None:
        self._pixels, self._small = pixels, small
        self._left = pixels
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Hold room for an image."""
        if pixels < self._small:
            yield
            return
        pixels = min(pixels, self._pixels)
        with self._freed:
            self._freed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._left += pixels
                self._freed.notify_all()


ROOM = PixelRoom(MAX_PIXELS, small=2**20)
"""Of this process."""
