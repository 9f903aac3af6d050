"""As many real images as fit when they are encoded."""

import numpy as np
import pytest

from d3m_assets.evaluation.baselines.encoded import EncodableClass, draft_images, encoded_sets, packed_sets, set_words
from d3m_assets.evaluation.codecs import CODED, decode_images
from d3m_assets.evaluation.codecs.codec import Cosines, QuantisedPixels


@pytest.fixture
def classes(train_digits):
    images = [train_digits.images[train_digits.labels == c] for c in range(3)]
    return [EncodableClass(of_class, of_class.reshape(len(of_class), -1).astype(float)) for of_class in images]


SHAPE = (8, 8, 1)


@pytest.mark.parametrize("allowed", [16, 64, 128])
@pytest.mark.parametrize("label_bytes", [0, 5])
def test_no_class_takes_more_than_its_bytes_and_one_image_more_would(classes, allowed, label_bytes):
    codec = QuantisedPixels(4, 1)
    for seed, found in enumerate(encoded_sets(classes, codec, allowed, (0, 1), label_bytes=label_bytes)):
        for c, payload, images in zip(classes, found.payloads, found.images, strict=True):
            assert len(payload) + label_bytes * len(images) <= allowed
            assert (decode_images(payload, SHAPE) == images).all()
            more = c.payload(codec, 10**6, seed, start=len(images) + 1)
            assert len(c.chosen(len(images) + 1, seed)) == len(images) + 1
            assert more is not None
            assert c._expected(codec, len(images) + 1, seed) + label_bytes * (len(images) + 1) > allowed - 3
        assert found.bytes_per_class == np.mean([len(p) for p in found.payloads])


def test_more_bytes_hold_more_images(classes):
    for codec in (QuantisedPixels(4, 3), Cosines(4, 80)):
        counts = [encoded_sets(classes, codec, b, (0,))[0].images_per_class for b in (32, 64, 128, 320)]
        assert counts == sorted(set(counts))
    packed = [packed_sets(classes, b, (0,))[0].images_per_class for b in (64, 128, 320)]
    assert packed == sorted(set(packed))


def test_packed_images_are_real_images_bit_by_bit(classes):
    first, second = packed_sets(classes, 128, (0, 1))
    for found in (first, second):
        for c, images in zip(classes, found.images, strict=True):
            known = {image.tobytes() for image in c.images}
            assert len(images) > 128 // 64  # more than raw ones
            assert {image.tobytes() for image in images} <= known
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first.images, second.images, strict=True))
    assert "images a class as pixels" in set_words([first, second])


def test_where_not_one_image_fits_there_is_no_set(classes):
    assert packed_sets(classes, 12, (0,)) is None
    assert encoded_sets(classes, QuantisedPixels(4, 63), 8, (0,)) is None
    assert draft_images(classes, QuantisedPixels(4, 63), 8, 0) is None


def test_a_small_class_gives_all_it_has(classes):
    few = [EncodableClass(c.images[:3], c.features[:3]) for c in classes]
    found = packed_sets(few, 10_000, (0,))[0]
    assert [len(images) for images in found.images] == [3, 3, 3]
    assert found.labelled().labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert found.labelled().split == "synthetic"


def test_a_draft_is_near_what_fits(classes):
    for codec in CODED[:3]:
        draft, best = draft_images(classes, codec, 200, 0), encoded_sets(classes, codec, 200, (0,))[0]
        for of_class, images in zip(draft, best.images, strict=True):
            assert 0.7 * len(images) <= len(of_class) <= len(images)
