"""Codes that come from outside are refused before anything is decoded."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from d3m_assets.errors import StageError
from d3m_assets.evaluation import codecs
from d3m_assets.evaluation.baselines.encoded import EncodableClass
from d3m_assets.evaluation.codecs import CODED, PACKED, codec_number, codec_of, encode_images
from d3m_assets.evaluation.codecs.codec import Cosines, LossySheet, QuantisedPixels
from d3m_assets.evaluation.codecs.reading import code_header, read_code

SHAPE = (16, 16, 1)


def images(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def header(codec, count):
    return bytes([codec_number(codec)]) + codecs._varint(count << 2)


@pytest.mark.parametrize("codec", [QuantisedPixels(4, 3), Cosines(4, 54), LossySheet(4, "JPEG", 30)])
def test_what_was_encoded_is_read(codec):
    code = encode_images(codec, images())
    assert code_header(code, SHAPE).codec == codec
    assert code_header(code, SHAPE).count == 5
    assert np.array_equal(read_code(code, SHAPE), codecs.decode_images(code, SHAPE))
    assert codec_of(codec_number(codec)) == codec


@pytest.mark.parametrize("codec", [QuantisedPixels(4, 3), Cosines(4, 54), LossySheet(4, "JPEG", 30)])
@pytest.mark.parametrize("count", [0, 10**8, 2**33])
def test_a_number_of_images_that_nobody_means_is_refused_before_memory_is_taken(codec, count):
    tracemalloc.start()
    with pytest.raises(StageError, match="get it again"):
        read_code(header(codec, count) + b"\0" * 40, SHAPE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_lossless_codecs_which_may_unpack_to_any_size_are_no_payload():
    for codec in PACKED:
        with pytest.raises(StageError, match="no payload"):
            read_code(encode_images(codec, images()), SHAPE)


@pytest.mark.parametrize("code", [b"", b"\xff\x04", b"\x07", b"\x07" + b"\x80" * 1000])
def test_what_has_no_header_is_refused(code):
    with pytest.raises(StageError, match="get them again"):
        code_header(code, SHAPE)


def test_a_picture_of_another_format_or_size_is_not_opened():
    def picture(name, side):
        file = io.BytesIO()
        Image.new("L", (side, side)).save(file, name)
        return file.getvalue()

    jpeg = LossySheet(4, "JPEG", 30)
    assert read_code(header(jpeg, 4) + picture("JPEG", 32), SHAPE).shape == (4, *SHAPE)
    for name in ("PNG", "GIF", "TIFF", "BMP"):
        with pytest.raises(StageError, match="cannot be decoded"):
            read_code(header(jpeg, 4) + picture(name, 32), SHAPE)
    with pytest.raises(StageError, match="does not hold 4 images"):
        read_code(header(jpeg, 4) + picture("JPEG", 4000), SHAPE)


def test_a_format_that_this_pillow_lacks_is_named(monkeypatch):
    from d3m_assets.evaluation.codecs import reading

    code = encode_images(LossySheet(4, "JPEG", 30), images())
    monkeypatch.setattr(reading, "available", lambda name: False)
    with pytest.raises(StageError, match="install one with JPEG"):
        read_code(code, SHAPE)


def test_every_codec_of_payloads_has_a_number_that_fits_into_a_byte():
    assert [codec_of(codec_number(codec)) for codec in CODED] == list(CODED)
    assert max(codec_number(codec) for codec in CODED) < 256


def test_no_more_images_are_coded_than_may_be_read(monkeypatch):
    monkeypatch.setattr("d3m_assets.evaluation.baselines.encoded.MOST_PIXELS", 3 * 16 * 16 + 5)
    monkeypatch.setattr("d3m_assets.evaluation.codecs.reading.MOST_PIXELS", 3 * 16 * 16 + 5)
    many = EncodableClass(images(9), np.random.default_rng(0).random((9, 4)))
    codec = QuantisedPixels(4, 3)
    start = many.count_that_fits(codec, 100_000, 0)
    code = many.payload(codec, 100_000, 0, start=start)
    assert start == code_header(code, SHAPE).count == 3
