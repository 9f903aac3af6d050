"""Images as bytes, arrays and contact sheets. Arrays are uint8 ``[H, W, C]`` or ``[N, H, W, C]``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from d3m_assets.datasets.image_limits import ROOM, CountedReader, LimitError, check_file, check_pixels, check_scans
from d3m_assets.datasets.settings import MAX_BYTES, MAX_PIXELS
from d3m_assets.errors import DatasetError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes without colour."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
"""Pillow's names of the formats that are read, whatever a file is called: some of the others start programs."""

# What Pillow finds odd is either refused in words of ours or of no account; by default it goes to the terminal. What a program
# that uses the package has said of its warnings goes first.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
logging.getLogger("PIL").addHandler(logging.NullHandler())

_BAND_PIXELS = 2**20
"""Of a large image that are converted together."""

_T = TypeVar("_T")


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Decode the first frame completely, upright, on black, with 8 bits a channel.

    Args:
        data: Contents of an image file of one of :data:`FORMATS`.
        max_pixels: An image with more is not decoded.

    Returns:
        The image, of mode ``L`` or ``RGB``, and the mode it was stored in.

    Raises:
        ValueError: The data is empty, no image of these formats, truncated, too large, asks too much of its decoder
            (:mod:`~d3m_assets.datasets.image_limits`), or has pixels of unknown range.
    """
    with decoded(data, max_pixels) as result:
        return result


@contextlib.contextmanager
def decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image, str]]:
    """As :func:`decode_image`, for threads: large images wait for each other until what is done with them is done.

    Raises:
        ValueError: As :func:`decode_image`.
    """
    if not data:
        raise ValueError("is empty (0 bytes)")
    with contextlib.ExitStack() as held:
        with _in_words():
            check_file(data, max_pixels)
            file = Image.open(CountedReader(data), formats=FORMATS)
            pixels = file.width * file.height
            check_pixels(pixels, max_pixels)
            if file.format in ("JPEG", "MPO"):
                check_scans(data, pixels)
            held.enter_context(ROOM.taken(pixels))
            file.load()
            image, stored = _upright(_eight_bit(file, file.mode), file), file.mode
            del file
        yield image, stored


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What goes wrong inside becomes a ValueError on one line."""
    try:
        yield
    except LimitError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"is not an image ({', '.join(FORMATS)} are read)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"is too large: {error}") from None
    except MemoryError:
        raise ValueError("cannot be decoded: it takes more memory than there is") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image of each EXIF orientation upright."""


def _upright(image: Image.Image, file: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose, which copies the pixels where nothing is to be turned and writes all metadata anew.
    turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image, stored: str) -> Image.Image:
    if stored == "F":
        raise LimitError("has floating point pixels, whose range is unknown; save it with 8 or 16 bits")
    mode = "L" if stored in GREY_MODES else "RGB"
    wide = stored.startswith("I")
    if image.mode == mode and not image.has_transparency_data:
        return image

    def converted(part: Image.Image) -> Image.Image:
        if wide:
            return _scaled(part)
        return (_on_black(part) if part.has_transparency_data else part).convert(mode)

    if image.width * image.height <= _BAND_PIXELS:
        return converted(image)
    # In bands: all at once would take several times the memory.
    flat = Image.new(mode, image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        flat.paste(converted(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return flat


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise LimitError("has pixels outside 0..65535; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _on_black(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def load_images(
    read: Callable[[_T], bytes], images: Sequence[_T], *, size: int | tuple[int, int], channels: Literal[1, 3]
) -> np.ndarray:
    """Load images at one size: bicubic so that the whole frame is covered, then the centre.

    Args:
        read: Gives the contents of an image file: the ``read`` of a source, or :func:`read_bytes`. Called by threads.
        images: What ``read`` takes: records of a source, or paths and URLs. Their text names them in errors.
        size: Side of a square, or height and width, in pixels. An image of the same aspect is only scaled.
        channels: 1 for luminance (ITU-R 601-2), 3 for RGB.

    Returns:
        uint8 ``[N, H, W, channels]``, in the order of ``images``; N may be 0.

    Raises:
        DatasetError: A file is missing or cannot be decoded; the message names it.
    """
    height, width = (size, size) if isinstance(size, int) else size
    out = np.empty((len(images), height, width, channels), np.uint8)

    def load(index: int) -> None:
        try:
            # A scan has decided what is too large.
            with decoded(read(images[index]), max_pixels=2**62) as (image, _):
                image = image.convert("L" if channels == 1 else "RGB")
                if image.size != (width, height):
                    image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
                out[index] = np.asarray(image).reshape(height, width, channels)
        except (OSError, ValueError) as error:
            raise DatasetError(f"image {images[index]} cannot be used: {error}. Scan the dataset again.") from error

    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in pool.map(load, range(len(images))):
            pass
    return out


def read_bytes(uri: str, storage_options: Mapping[str, Any] | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Contents of a local file or fsspec URL.

    Args:
        uri: Local path or fsspec URL.
        storage_options: Arguments of the fsspec file system.
        max_bytes: A local file with more is not read, one from a network not used.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, or a local path that is no regular file.
    """
    protocol, separator, _ = uri.partition("://")
    if not separator:
        return _read_regular(uri, max_bytes)
    # Not url_to_fs, which would take a "::" in a class name for a chain of file systems.
    fs = fsspec.filesystem(protocol, **(storage_options or {}))
    if isinstance(fs, LocalFileSystem):
        return _read_regular(fs._strip_protocol(uri), max_bytes)
    data: bytes = fs.cat_file(fs._strip_protocol(uri))
    if len(data) > max_bytes:
        raise ValueError(too_large(len(data), max_bytes))
    return data


def _read_regular(path: str, max_bytes: int) -> bytes:
    # Without O_NONBLOCK the mere opening of a pipe waits until someone writes into it.
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
    ) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        if status.st_size > max_bytes:
            raise ValueError(too_large(status.st_size, max_bytes))
        return file.read(max_bytes)


def too_large(size: int, max_bytes: int) -> str:
    """What is wrong with a file of ``size`` bytes, as the rest of a sentence."""
    return f"has {size:,} bytes; `images.max_bytes` allows {max_bytes:,}"


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """PNG of one image; lossless.

    Args:
        image: uint8 ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``.
        text: Text chunks by keyword, in Latin-1, written before the pixels.

    Raises:
        ValueError: Another dtype or shape.
    """
    if not text:
        return _png(_from_array(image))
    chunks = PngInfo()
    for keyword, content in text.items():
        chunks.add_text(keyword, content)
    buffer = io.BytesIO()
    _from_array(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Undo :func:`encode_png`: uint8 ``[H, W, C]`` with C 1 or 3.

    Raises:
        ValueError: The data is no image or damaged.
    """
    image, _ = decode_image(data)
    return np.asarray(image).reshape(image.height, image.width, -1)


def contact_sheet(images: np.ndarray, columns: int, scale: int = 1, max_bytes: int = 30_000) -> bytes:
    """Draw many images on one, row by row, small enough for a web page or an event log.

    Args:
        images: uint8 ``[N, H, W, C]`` with N at least 1 and C 1 or 3.
        columns: Images in a row.
        scale: Wanted magnification in whole, unsmoothed pixels.
        max_bytes: Size that the result stays under: magnification is given up first, then resolution.

    Returns:
        A PNG, grey or with a palette of at most 256 colours, one dark pixel between images.

    Raises:
        ValueError: Another dtype or shape, or no images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise ValueError(f"want uint8 [N, H, W, 1 or 3] with N > 0, got {images.dtype} {list(images.shape)}")
    n, height, width, channels = images.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 24, np.uint8)
    tiles[:n, :height, :width] = images
    grid = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    sheet = _from_array(grid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1])
    excess = sheet.width * sheet.height / (40 * max_bytes)
    if excess > 1:  # encoding it would take seconds, for nothing
        sheet = _shrunk(sheet, excess**-0.5)
    smallest = _png(_with_palette(sheet))
    if len(smallest) <= max_bytes:
        for factor in range(scale, 1, -1):
            drawn = sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
            if len(data := _png(_with_palette(drawn))) <= max_bytes:
                return data
    while len(smallest) > max_bytes and max(sheet.size) > 1:
        sheet = _shrunk(sheet, min(0.9, (max_bytes / len(smallest)) ** 0.5))
        smallest = _png(_with_palette(sheet))
    return smallest


def _shrunk(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"want uint8 [H, W], [H, W, 1] or [H, W, 3], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _with_palette(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else image.quantize(256, dither=Image.Dither.NONE)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
