"""The codec that real images are coded with is chosen on validation images and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from d3m_assets.errors import StageError
from d3m_assets.evaluation.baselines.encoded import EncodableClass
from d3m_assets.evaluation.codec_choice import FINALISTS, choice_words, choose_codec
from d3m_assets.evaluation.settings import StudentSettings
from d3m_assets.progress import ProgressEvent

SETTINGS = StudentSettings(width=8, steps=60, seeds=(3,))


@pytest.fixture(scope="module")
def parts():
    from d3m_assets_tests.evaluation.conftest import _digits

    train, _ = _digits()
    held_out = np.arange(len(train)) % 5 == 0
    rest = train.subset(~held_out)
    images = [rest.images[rest.labels == c][:60] for c in range(10)]
    classes = [EncodableClass(i, i.reshape(len(i), -1).astype(float)) for i in images]
    return classes, replace(train.subset(held_out), split="validation")


@pytest.fixture(scope="module")
def candidates(parts):
    return choose_codec(*parts, 64, SETTINGS)


def test_the_best_on_validation_images_comes_first(candidates):
    students = [c.student for c in candidates[:FINALISTS]]
    assert students == sorted(students, reverse=True)
    assert all(c.student is None for c in candidates[FINALISTS:])
    proxies = [c.proxy for c in candidates]
    # Finalists are those that the first step prefers, and what it rejects is worse than them.
    assert min(proxies[:FINALISTS]) >= max(proxies[FINALISTS:])
    assert proxies[0] > min(proxies) + 0.1
    assert candidates[0].student > 0.7
    words = choice_words(candidates)
    assert f"among {len(candidates)} codecs" in words
    assert candidates[0].codec.words in words


def test_other_validation_images_choose_another_order_and_the_same_ones_the_same(parts, candidates):
    classes, validation = parts
    again = choose_codec(classes, validation, 64, SETTINGS)
    assert again == candidates
    draw = np.random.default_rng(0)
    shuffled = replace(validation, labels=draw.permutation(validation.labels))
    other = choose_codec(classes, shuffled, 64, SETTINGS)
    assert max(c.proxy for c in other) < 0.3
    assert [c.codec for c in other] != [c.codec for c in candidates]


def test_test_images_are_refused(parts):
    classes, validation = parts
    with pytest.raises(StageError, match="not on those of the test split"):
        choose_codec(classes, replace(validation, split="test"), 64, SETTINGS)


def test_where_nothing_fits_there_is_no_candidate(parts):
    told: list[ProgressEvent] = []
    assert choose_codec(*parts, 3, SETTINGS, progress=told.append) == []
    assert told
