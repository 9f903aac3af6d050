from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from d3m_assets.datasets.images import contact_sheet, decode_image, decode_png, encode_png, load_images, read_bytes
from d3m_assets.errors import DatasetError
from d3m_assets_tests.datasets.conftest import png


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless(channels):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    assert (decode_png(encode_png(array)) == array).all()
    if channels == 1:
        assert encode_png(array[:, :, 0]) == encode_png(array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 1), np.uint8),
    ],
)
def test_encode_refuses_what_is_no_image(array):
    with pytest.raises(ValueError, match="want uint8"):
        encode_png(array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a", "cannot be decoded|is not an image"),
        (b"hello", "is not an image"),
        (png(1, 40, 40)[:-200], "cannot be decoded"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "floating point"),
    ],
)
def test_decode_says_what_is_wrong(data, message):
    with pytest.raises(ValueError, match=message):
        decode_image(data)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="is too large"):
        decode_image(png(1, 40, 40))


def test_sixteen_bits_are_scaled():
    data = saved(Image.fromarray(np.array([[0, 128, 257, 65535]], np.uint16)))
    image, mode = decode_image(data)
    assert mode.startswith("I")
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (200, 100, 50, 0)), ("RGB", (0, 0, 0))),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 255)), ("RGB", (200, 100, 50))),
        (Image.new("LA", (2, 2), (200, 0)), ("L", 0)),
        (Image.new("1", (2, 2), 1), ("L", 255)),
        (
            Image.new(
                "P",
                (2, 2),
                0,
            ),
            ("RGB", (0, 0, 0)),
        ),
    ],
)
def test_other_modes_become_grey_or_colour_on_black(image, expected):
    decoded, mode = decode_image(saved(image))
    assert (decoded.mode, decoded.getpixel((0, 0))) == expected
    assert mode == image.mode


def test_first_frame_and_orientation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    decoded, _ = decode_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    array = np.zeros((8, 8), np.uint8)
    array[0] = 255
    decoded, _ = decode_image(saved(Image.fromarray(array), "PNG", exif=exif))
    assert np.asarray(decoded)[-1].tolist() == [255] * 8
    assert not np.asarray(decoded)[0].any()


def test_load_keeps_order_shape_and_pixels(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), np.uint8)
    for i, array in enumerate(arrays):
        (tmp_path / f"{i}.png").write_bytes(encode_png(array))
    uris = [str(tmp_path / f"{i}.png") for i in (2, 0, 1)]
    loaded = load_images(read_bytes, uris, size=6, channels=3)
    assert loaded.dtype == np.uint8
    assert (loaded == arrays[[2, 0, 1]]).all()
    assert load_images(read_bytes, uris, size=(4, 8), channels=1).shape == (3, 4, 8, 1)
    assert load_images(read_bytes, [], size=4, channels=3).shape == (0, 4, 4, 3)


def test_load_covers_and_takes_the_centre(tmp_path):
    array = np.zeros((8, 24), np.uint8)
    array[:, 8:16] = 200  # the middle third
    (tmp_path / "wide.png").write_bytes(encode_png(array))
    assert (load_images(read_bytes, [str(tmp_path / "wide.png")], size=8, channels=1) == 200).all()
    half = load_images(read_bytes, [str(tmp_path / "wide.png")], size=(4, 12), channels=1)[0, :, :, 0]
    expected = Image.fromarray(array).resize((12, 4), Image.Resampling.BICUBIC)
    assert (half == np.asarray(expected)).all()


def test_load_names_the_file(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    for name in ("bad.png", "absent.png"):
        with pytest.raises(DatasetError, match=name):
            load_images(read_bytes, [str(tmp_path / name)], size=4, channels=1)


def test_contact_sheet_shows_every_image_in_its_place():
    images = np.stack([np.full((4, 4, 1), value, np.uint8) for value in (50, 100, 150, 200, 250)])
    sheet = decode_png(contact_sheet(images, columns=3, scale=2))
    assert sheet.shape == (2 * 9, 2 * 14, 1)
    centres = [int(sheet[2 * (5 * (i // 3) + 2), 2 * (5 * (i % 3) + 2), 0]) for i in range(5)]
    assert centres == [50, 100, 150, 200, 250]


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_stays_small(channels):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 40, channels), np.uint8)
    data = contact_sheet(noise, columns=10, scale=8)
    assert 10_000 < len(data) <= 30_000
    assert len(contact_sheet(noise, columns=99, scale=1, max_bytes=2_000)) <= 2_000


@pytest.mark.parametrize(
    "images", [np.zeros((0, 4, 4, 1), np.uint8), np.zeros((1, 4, 4, 1)), np.zeros((4, 4, 1), np.uint8)]
)
def test_contact_sheet_refuses_what_are_no_images(images):
    with pytest.raises(ValueError, match="want uint8"):
        contact_sheet(images, columns=2)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="is no regular file"):
            read_bytes(str(tmp_path / name))
    (tmp_path / "large").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="has 101 bytes; `images.max_bytes` allows 100"):
        read_bytes(str(tmp_path / "large"), max_bytes=100)
