from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d3m_assets.datasets.labelled_images import LabelledImages, resize_to_square
from d3m_assets.errors import DatasetError


def test_resizing_changes_size_and_channels_and_crops_the_centre():
    grey = LabelledImages(np.full((2, 8, 8, 1), 90, np.uint8), np.array([0, 1]))
    colour = grey.resized(16, 3)
    assert colour.images.shape == (2, 16, 16, 3)
    assert (colour.images[..., 0] == colour.images[..., 2]).all()
    assert grey.resized(8, 1) is grey
    wide = np.zeros((1, 4, 12, 1), np.uint8)
    wide[:, :, 4:8] = 200
    square = LabelledImages(wide, np.array([0]), "test").resized(8, 1)
    assert (square.images == 200).all()
    assert square.split == "test"


def test_images_that_fit_are_not_copied():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    assert resize_to_square(images, 16, 3) is images


def test_a_subset_keeps_images_hard_and_soft_labels_together():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    data = LabelledImages(images, np.array([3, 2, 1, 0]), "synthetic", np.eye(4)[[3, 2, 1, 0]])
    for which in (np.array([True, False, True, False]), np.array([0, 2])):
        part = data.subset(which)
        assert part.images[:, 0, 0, 0].tolist() == [0, 2]
        assert part.labels.tolist() == part.probabilities.argmax(1).tolist() == [3, 1]
        assert part.split == "synthetic"


def test_bad_images_and_labels_are_refused():
    images, labels = np.zeros((4, 16, 16, 1), np.uint8), np.arange(4)
    with pytest.raises(DatasetError, match="uint8"):
        LabelledImages(images.astype(float), labels)
    with pytest.raises(DatasetError, match="one integer class position"):
        LabelledImages(images, labels[:2])
    with pytest.raises(DatasetError, match="empty"):
        LabelledImages(images[:0], labels[:0])


def test_unfit_soft_labels_are_refused():
    data = LabelledImages(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4))
    for bad in (np.ones((4, 10)), np.full((3, 10), 0.1), np.eye(10, dtype=int)[:4], -np.eye(10)[:4]):
        with pytest.raises(DatasetError, match="add up to 1"):
            replace(data, probabilities=bad)
