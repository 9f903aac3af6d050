"""Payloads: decoded from their bytes alone, every byte counted."""

import contextlib

import numpy as np
import pytest

from d3m_assets.errors import StageError
from d3m_assets.evaluation import codecs
from d3m_assets.evaluation.codecs import CODED, PACKED, decode_images, encode_images, payload_length
from d3m_assets.evaluation.codecs.codec import Cosines, LossySheet, QuantisedPixels
from d3m_assets.evaluation.codecs.pixels import exact_steps

SHAPES = [(8, 8, 1), (9, 12, 1), (16, 20, 3)]


def natural(n, shape, seed=0):
    """Smooth images with noise, of a class of their own."""
    draw = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, shape[1])[:, None] + draw.normal(60, 20, (n, 1, 1, shape[2]))
    return (ramp + draw.normal(0, 12, (n, *shape))).clip(0, 255).astype(np.uint8)


def digits(train_digits, n):
    return train_digits.images[train_digits.labels == 3][:n]


@pytest.mark.parametrize("codec", PACKED, ids=lambda codec: codec.words)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_images_are_decoded_exactly(codec, shape):
    for n in (1, 5, 40):
        images = natural(n, shape)
        payload = encode_images(codec, images)
        decoded = decode_images(payload, shape)
        assert decoded.dtype == np.uint8
        assert (decoded == images).all()
        assert abs(len(payload) - payload_length(codec, images)) <= 3


@pytest.mark.parametrize("codec", CODED, ids=lambda codec: codec.words)
def test_coded_images_are_decoded_from_their_bytes_at_the_length_that_was_expected(codec):
    for shape in SHAPES:
        if not codec.suits(shape, 6):
            continue
        images = natural(6, shape)
        payload = encode_images(codec, images)
        decoded = decode_images(bytes(payload), shape)
        assert decoded.shape == images.shape
        assert abs(len(payload) - payload_length(codec, images)) <= 3
        assert (decode_images(encode_images(codec, images), shape) == decoded).all()
        assert (codec.approximation(images) == decoded).all()
        # Another image gives other bytes, so nothing of it comes from elsewhere.
        blank = decode_images(encode_images(codec, np.zeros_like(images)), shape)
        assert blank.max() <= 12
        assert np.abs(decoded.astype(int) - images).mean() < np.abs(blank.astype(int) - images).mean()


def test_finer_steps_take_more_bytes_and_lose_less():
    images = natural(8, (16, 16, 1))
    for family in (
        [QuantisedPixels(4, steps) for steps in (1, 3, 7, 15, 63)],
        [Cosines(4, step) for step in (270, 120, 54, 24)],
        [LossySheet(4, "JPEG", quality) for quality in (5, 30, 85)],
    ):
        payloads = [encode_images(codec, images) for codec in family]
        errors = [((decode_images(p, (16, 16, 1)).astype(int) - images) ** 2).mean() for p in payloads]
        assert [len(p) for p in payloads] == sorted(len(p) for p in payloads)
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 60


def test_a_digit_costs_a_third_of_its_raw_bytes_without_loss(train_digits):
    images = digits(train_digits, 20)
    assert exact_steps(images) == 16
    best = min(len(encode_images(codec, images)) for codec in PACKED)
    assert best / 20 < 24  # of 64 raw
    general = min(len(encode_images(codec, images)) for codec in PACKED[1:])
    assert best < 0.9 * general


def test_every_byte_is_needed(train_digits):
    images = digits(train_digits, 6)
    for codec in (PACKED[0], QuantisedPixels(4, 3), Cosines(4, 54)):
        payload = encode_images(codec, images)
        decoded = decode_images(payload, (8, 8, 1))
        for position in (2, len(payload) // 2):
            changed = bytearray(payload)
            changed[position] ^= 0x55
            with contextlib.suppress(StageError):
                assert not np.array_equal(decode_images(bytes(changed), (8, 8, 1)), decoded)


def test_what_names_no_codec_or_is_cut_is_refused():
    payload = encode_images(PACKED[1], natural(3, (8, 8, 1)))
    with pytest.raises(StageError, match="encode them again"):
        decode_images(payload[:40], (8, 8, 1))
    with pytest.raises(StageError, match="encode them again"):
        decode_images(b"\xff" + payload[1:], (8, 8, 1))
    with pytest.raises(StageError, match="encode them again"):
        decode_images(b"", (8, 8, 1))
    with pytest.raises(StageError, match="no image to encode"):
        encode_images(PACKED[0], natural(3, (8, 8, 1))[:0])


def test_large_images_are_left_to_picture_files():
    large = [codec for codec in CODED if codec.suits((224, 224, 3), 10)]
    assert {type(codec) for codec in large} == {LossySheet, QuantisedPixels}
    assert all(codec.scale == 1 for codec in large if isinstance(codec, QuantisedPixels))
    assert [type(codec) for codec in PACKED if codec.suits((224, 224, 3), 1)].count(type(PACKED[0])) == 0


def test_a_byte_names_every_codec():
    assert len({codec.words for codec in (*PACKED, *CODED)}) == len(PACKED) + len(CODED) <= 256
    assert codecs._read_varint(codecs._varint(70_000) + b"x", 0) == (70_000, 3)
